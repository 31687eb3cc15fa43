//! Whether a JPEG holds all of its picture: a strict walk through its coded data.
//!
//! Decoders are made to show something of every file. They paint what is missing grey, skip what
//! is too much, and tell nobody. Here each Huffman code is read and its value thrown away, and a
//! file is refused when a code or a marker can't be, when the codes end before the blocks do or
//! the blocks before the codes, when a restart marker is missing or out of turn, when the end of
//! the image is not reached, when a block's mean is no colour, and when there is a stretch of
//! zeros that no picture has. Blocks differ in length, so a stretch that was overwritten nearly
//! always leaves the rest too long or too short.
//!
//! What can't be known, for JPEG has no checksum: a change that leaves every code as long as it
//! was, such as another sign or amplitude of a coefficient; and a scramble that happens to have as
//! many blocks as what it covers. That is likelier the fewer they are: of 64 random bytes in images
//! of 48 blocks, three in a hundred pass, and of 100 bytes cut out, six.

/// Checks a JPEG, given whole. Whatever lies behind its end is not looked at.
///
/// # Errors
/// What is wrong with it, as the end of a sentence that begins with its name.
pub(super) fn check(bytes: &[u8]) -> Result<(), String> {
    let mut walk = Walk::default();
    let mut at = 2; // after the start-of-image marker
    loop {
        let marker = marker(bytes, &mut at)?;
        match marker {
            END => return walk.is_complete(),
            // Alone, without a segment: a restart after the last block does no harm.
            0x01 | 0xd0..=0xd7 => continue,
            _ => {}
        }
        let segment = segment(bytes, &mut at)?;
        match marker {
            0xdb => walk.quantization_tables(segment)?,
            0xc4 => walk.huffman_tables(segment)?,
            0xc0..=0xc2 => walk.frame(segment, marker == 0xc2)?,
            // Lossless, hierarchical, arithmetic.
            0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf => {
                return Err(format!(
                    "is a JPEG of a kind that isn't read (FF{marker:X})"
                ));
            }
            0xdd => match *segment {
                [high, low] => walk.restart = usize::from(u16::from_be_bytes([high, low])),
                _ => return Err(broken("restart interval")),
            },
            0xda => walk.scan(segment, bytes, &mut at)?,
            _ => {}
        }
    }
}

const END: u8 = 0xd9;

fn broken(what: &str) -> String {
    format!("is a JPEG with a {what} that can't be")
}

fn breaks_off() -> String {
    "is a JPEG that breaks off before its end".to_owned()
}

/// The marker at `at`, which any number of FF may precede.
fn marker(bytes: &[u8], at: &mut usize) -> Result<u8, String> {
    let fill = bytes.get(*at..).unwrap_or_default();
    let fill = fill.iter().take_while(|&&byte| byte == 0xff).count();
    let Some(&marker) = bytes.get(*at + fill) else {
        return Err(breaks_off());
    };
    if fill == 0 || marker == 0 {
        return Err(format!(
            "is a JPEG with no marker at byte {at}, where one must be"
        ));
    }
    *at += fill + 1;
    Ok(marker)
}

/// The content of the segment at `at`, without its length.
fn segment<'a>(bytes: &'a [u8], at: &mut usize) -> Result<&'a [u8], String> {
    let length = bytes.get(*at..*at + 2).ok_or_else(breaks_off)?;
    let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
    if length < 2 {
        return Err(broken("segment's length"));
    }
    let content = bytes.get(*at + 2..*at + length).ok_or_else(breaks_off)?;
    *at += length;
    Ok(content)
}

/// Canonical Huffman codes.
#[derive(Clone)]
struct Table {
    /// By length: the first 16 bits (left-aligned) that no code of this length or less begins.
    limits: [u32; 17],
    /// By length: what to add to a code for its place in `values`.
    offsets: [i32; 17],
    values: Vec<u8>,
}

impl Table {
    fn new(counts: &[u8; 16], values: &[u8]) -> Result<Self, String> {
        let (mut limits, mut offsets) = ([0; 17], [0; 17]);
        let (mut code, mut place) = (0u32, 0i32);
        for length in 1..=16 {
            let count = counts[length - 1];
            offsets[length] = place - code as i32;
            code += u32::from(count);
            place += i32::from(count);
            if code > 1 << length {
                return Err(broken("Huffman table"));
            }
            limits[length] = code << (16 - length);
            code <<= 1;
        }
        Ok(Self {
            limits,
            offsets,
            values: values.to_vec(),
        })
    }
}

/// Coded data, bit by bit, to the next marker.
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The next `held` bits, from the top.
    bits: u64,
    held: u32,
    /// Bytes of zeros in a row: now, and at most so far.
    zeros: u32,
    most_zeros: u32,
}

impl Bits<'_> {
    fn fill(&mut self) {
        while self.held <= 56 {
            let byte = match (self.bytes.get(self.at), self.bytes.get(self.at + 1)) {
                (Some(0xff), Some(0)) => {
                    self.at += 2;
                    0xff
                }
                (None | Some(0xff), _) => return,
                (Some(&byte), _) => {
                    self.at += 1;
                    byte
                }
            };
            self.zeros = if byte == 0 { self.zeros + 1 } else { 0 };
            self.most_zeros = self.most_zeros.max(self.zeros);
            self.bits |= u64::from(byte) << (56 - self.held);
            self.held += 8;
        }
    }

    /// The next `count` bits, at most 16.
    fn take(&mut self, count: u32) -> Result<u32, String> {
        if self.held < count {
            self.fill();
        }
        if self.held < count {
            let at = self.at;
            return Err(format!(
                "is a JPEG whose coded data ends before its pixels do, at byte {at}"
            ));
        }
        let taken = self.bits.checked_shr(64 - count).unwrap_or(0) as u32;
        self.bits <<= count;
        self.held -= count;
        Ok(taken)
    }

    fn symbol(&mut self, table: &Table) -> Result<u8, String> {
        if self.held < 16 {
            self.fill();
        }
        let next = (self.bits >> 48) as u32;
        let no_code = || {
            format!(
                "is a JPEG with a code that can't be, before byte {}",
                self.at
            )
        };
        let length = (1..=16).find(|&length| next < table.limits[length]);
        let length = length.ok_or_else(no_code)?;
        let place = (next >> (16 - length)) as i32 + table.offsets[length];
        let value = table.values.get(place as usize).copied();
        let value = value.ok_or_else(no_code)?;
        self.take(length as u32)?;
        Ok(value)
    }

    /// Nothing but the padding of the last byte may be left.
    fn end(&mut self) -> Result<(), String> {
        self.fill();
        if self.held >= 8 {
            let at = self.at;
            return Err(format!(
                "is a JPEG with more coded data than pixels, before byte {at}"
            ));
        }
        (self.bits, self.held) = (0, 0);
        Ok(())
    }

    /// The restart marker number `number`, and nothing before it.
    fn restart(&mut self, number: usize) -> Result<(), String> {
        self.end()?;
        let expected = 0xd0 + (number % 8) as u8;
        match marker(self.bytes, &mut self.at)? {
            found if found == expected => Ok(()),
            found => Err(format!(
                "is a JPEG with the marker FF{found:X} before byte {}, where FF{expected:X} must be",
                self.at
            )),
        }
    }
}

struct Component {
    id: u8,
    /// Sampling factors: blocks of an interleaved unit, across and down.
    factors: [usize; 2],
    /// Blocks that hold pixels, across and down.
    blocks: [usize; 2],
    /// Blocks in a row, with those that only fill up a unit.
    stride: usize,
    /// A progressive image's coefficients that are not zero so far, a bit each: refining ones
    /// takes a bit for each of them.
    nonzero: Vec<u64>,
    scanned: bool,
    /// Its quantization table.
    table: u8,
    /// The mean of the last block, quantized: what the next one's is the difference from.
    dc: i64,
}

#[derive(Default)]
struct Walk {
    progressive: bool,
    /// Interleaved units, across and down.
    units: [usize; 2],
    components: Vec<Component>,
    dc: [Option<Table>; 4],
    ac: [Option<Table>; 4],
    /// The first entry of each quantization table.
    steps: [i64; 4],
    /// Units from one restart to the next; 0: none.
    restart: usize,
}

/// What a scan codes of each block.
#[derive(Clone, Copy)]
struct Band {
    first: u32,
    last: u32,
    /// Low bits that are left to later scans.
    shift: u32,
    /// Whether it adds a bit to what earlier scans have coded.
    refines: bool,
    /// Whether one code may end several blocks: in progressive images.
    runs: bool,
}

/// The largest mean of a block, in its own scale: what pixels of 8 bits give, and a quarter for
/// encoders that overshoot. Rounding adds up to a quantization step.
const MAX_DC: i64 = 1280;

/// So many zero bytes in a row, 192 bits, are a whole block's coefficients or more.
const MAX_ZEROS: u32 = 24;

/// The most bits of a coefficient in an image of 8 bits; decoders read no other.
const MAX_BITS: u32 = 10;

impl Walk {
    fn quantization_tables(&mut self, mut segment: &[u8]) -> Result<(), String> {
        let wrong = || broken("quantization table");
        while let Some((&id, rest)) = segment.split_first() {
            let wide = id >> 4 != 0;
            let (table, rest) = rest
                .split_at_checked(if wide { 128 } else { 64 })
                .ok_or_else(wrong)?;
            let step = self.steps.get_mut(usize::from(id & 15));
            *step.ok_or_else(wrong)? = match wide {
                true => u16::from_be_bytes([table[0], table[1]]).into(),
                false => table[0].into(),
            };
            segment = rest;
        }
        Ok(())
    }

    fn huffman_tables(&mut self, mut segment: &[u8]) -> Result<(), String> {
        while let Some((&id, rest)) = segment.split_first() {
            let (counts, rest) = rest
                .split_first_chunk::<16>()
                .ok_or_else(|| broken("Huffman table"))?;
            let count = counts.iter().copied().map(usize::from).sum();
            let (values, rest) = rest
                .split_at_checked(count)
                .ok_or_else(|| broken("Huffman table"))?;
            let tables = match id >> 4 {
                0 => &mut self.dc,
                1 => &mut self.ac,
                _ => return Err(broken("Huffman table")),
            };
            let place = tables.get_mut(usize::from(id & 15));
            *place.ok_or_else(|| broken("Huffman table"))? = Some(Table::new(counts, values)?);
            segment = rest;
        }
        Ok(())
    }

    fn frame(&mut self, segment: &[u8], progressive: bool) -> Result<(), String> {
        let wrong = || broken("frame header");
        let (&[_, h1, h0, w1, w0, count], components) =
            segment.split_first_chunk::<6>().ok_or_else(wrong)?;
        let height = usize::from(u16::from_be_bytes([h1, h0]));
        let width = usize::from(u16::from_be_bytes([w1, w0]));
        let (components, rest) = components.as_chunks::<3>();
        let factors = |byte: u8| [usize::from(byte >> 4), usize::from(byte & 15)];
        let all: Vec<[usize; 2]> = components.iter().map(|c| factors(c[1])).collect();
        let good = |[h, v]: &[usize; 2]| (1..=4).contains(h) && (1..=4).contains(v);
        if !self.components.is_empty()
            || height == 0
            || width == 0
            || components.is_empty()
            || components.len() != usize::from(count)
            || !rest.is_empty()
            || !all.iter().all(good)
        {
            return Err(wrong());
        }
        let most = |axis: usize| all.iter().map(|f| f[axis]).max().unwrap_or(1);
        let most = [most(0), most(1)];
        let size = [width, height];
        self.progressive = progressive;
        self.units = [0, 1].map(|axis| size[axis].div_ceil(8 * most[axis]));
        for (&[id, _, table], factors) in components.iter().zip(all) {
            let blocks = [0, 1].map(|a| (size[a] * factors[a]).div_ceil(most[a]).div_ceil(8));
            let stride = self.units[0] * factors[0];
            let stored = if progressive {
                stride * self.units[1] * factors[1]
            } else {
                0
            };
            self.components.push(Component {
                id,
                factors,
                blocks,
                stride,
                nonzero: vec![0; stored],
                scanned: false,
                table,
                dc: 0,
            });
        }
        Ok(())
    }

    /// Every component must have been there.
    fn is_complete(&self) -> Result<(), String> {
        if self.components.is_empty() || self.components.iter().any(|c| !c.scanned) {
            return Err("is a JPEG that ends before all of its picture was there".to_owned());
        }
        Ok(())
    }

    /// Reads a scan's header and all of its codes; `at` is then behind them.
    fn scan(&mut self, header: &[u8], bytes: &[u8], at: &mut usize) -> Result<(), String> {
        let wrong = || broken("scan header");
        let (&count, rest) = header.split_first().ok_or_else(wrong)?;
        let (chosen, rest) = rest
            .split_at_checked(2 * usize::from(count))
            .ok_or_else(wrong)?;
        let &[first, last, precision] = rest else {
            return Err(wrong());
        };
        let mut parts = Vec::new();
        for &[id, tables] in chosen.as_chunks::<2>().0 {
            let place = self.components.iter().position(|c| c.id == id);
            let place = place.ok_or_else(wrong)?;
            let table = |tables: &[Option<Table>; 4], id: u8| {
                tables.get(usize::from(id)).cloned().flatten()
            };
            let dc = table(&self.dc, tables >> 4);
            let ac = table(&self.ac, tables & 15);
            self.components[place].dc = 0;
            parts.push((place, dc, ac));
        }
        let band = if self.progressive {
            Band {
                first: u32::from(first),
                last: u32::from(last),
                shift: u32::from(precision & 15),
                refines: precision >> 4 != 0,
                runs: true,
            }
        } else {
            Band {
                first: 0,
                last: 63,
                shift: 0,
                refines: false,
                runs: false,
            }
        };
        let dc_alone = !self.progressive || first > 0 || last == 0;
        if parts.is_empty()
            || band.first > band.last
            || band.last > 63
            || band.shift > 13
            || !dc_alone
            || (band.first > 0 && parts.len() > 1)
        {
            return Err(wrong());
        }

        let mut bits = Bits {
            bytes,
            at: *at,
            bits: 0,
            held: 0,
            zeros: 0,
            most_zeros: 0,
        };
        let alone = parts.len() == 1;
        let units = match alone {
            true => self.components[parts[0].0].blocks,
            false => self.units,
        };
        let mut run = 0;
        for unit in 0..units[0] * units[1] {
            if self.restart > 0 && unit > 0 && unit % self.restart == 0 {
                if run > 0 {
                    return Err(broken("run of blocks"));
                }
                bits.restart(unit / self.restart - 1)?;
                self.components.iter_mut().for_each(|c| c.dc = 0);
            }
            let [x, y] = [unit % units[0], unit / units[0]];
            for (place, dc, ac) in &parts {
                let component = &mut self.components[*place];
                let step = self.steps.get(usize::from(component.table));
                let step = step.copied().unwrap_or(0) << band.shift;
                component.scanned |= band.first == 0;
                let [across, down] = if alone { [1, 1] } else { component.factors };
                for row in y * down..(y + 1) * down {
                    for column in x * across..(x + 1) * across {
                        let mut none = 0;
                        let nonzero = component
                            .nonzero
                            .get_mut(row * component.stride + column)
                            .unwrap_or(&mut none);
                        let mean = &mut component.dc;
                        block(&mut bits, band, dc, ac, mean, nonzero, &mut run)?;
                        if (*mean * step).abs() > MAX_DC + step {
                            return Err(broken("block brighter or darker than any"));
                        }
                    }
                }
            }
        }
        if run > 0 {
            return Err(broken("run of blocks"));
        }
        bits.end()?;
        *at = bits.at;
        // Nothing but zeros can be a flat stretch, where they spell the end of a block, or
        // refinements that add nothing; else it would be the same coefficient over and over.
        let spells = |table: &Option<Table>| {
            let first = table.as_ref().and_then(|table| table.values.first());
            first.is_none_or(|symbol| symbol & 15 == 0)
        };
        let uses_ac = band.last > 0 && !band.refines;
        if uses_ac && bits.most_zeros >= MAX_ZEROS && !parts.iter().all(|(_, _, ac)| spells(ac)) {
            return Err(format!(
                "is a JPEG with a hole: {} zero bytes in a row before byte {at}",
                bits.most_zeros
            ));
        }
        Ok(())
    }
}

/// Reads one block's codes of a scan, and adds the difference of its mean to `mean`. `nonzero` has a bit for each coefficient that isn't zero;
/// `run` counts the blocks to come that have no codes.
fn block(
    bits: &mut Bits,
    band: Band,
    dc: &Option<Table>,
    ac: &Option<Table>,
    mean: &mut i64,
    nonzero: &mut u64,
    run: &mut u32,
) -> Result<(), String> {
    let missing = || "is a JPEG without the Huffman tables that it names".to_owned();
    let mut at = band.first;
    if at == 0 {
        if band.refines {
            bits.take(1)?;
        } else {
            let size = bits.symbol(dc.as_ref().ok_or_else(missing)?)?;
            let size = u32::from(size);
            if size > MAX_BITS + 1 {
                return Err(broken("coefficient"));
            }
            // Values that begin with a 0 are negative.
            let value = i64::from(bits.take(size)?);
            let negative = size > 0 && value >> (size - 1) == 0;
            *mean += if negative {
                value - (1 << size) + 1
            } else {
                value
            };
        }
        at = 1;
        if band.last == 0 {
            return Ok(());
        }
    }
    let ac = ac.as_ref().ok_or_else(missing)?;
    let beyond = || broken("coefficient outside of its block");
    while *run == 0 && at <= band.last {
        let symbol = bits.symbol(ac)?;
        let (mut zeros, size) = (u32::from(symbol >> 4), u32::from(symbol & 15));
        if size == 0 && zeros < 15 {
            // The rest of this block, and of a progressive image's next ones.
            if zeros > 0 && !band.runs {
                return Err(broken("run of blocks"));
            }
            *run = (1 << zeros) + bits.take(zeros)?;
            break;
        }
        if band.refines {
            if size > 1 {
                return Err(broken("refined coefficient"));
            }
            bits.take(size)?;
            // Coefficients that are there already take a bit each, and don't count as zeros.
            while at <= band.last && (zeros > 0 || *nonzero >> at & 1 == 1) {
                if *nonzero >> at & 1 == 1 {
                    bits.take(1)?;
                } else {
                    zeros -= 1;
                }
                at += 1;
            }
        } else {
            if size > MAX_BITS {
                return Err(broken("coefficient"));
            }
            bits.take(size)?;
            at += zeros;
        }
        if at > band.last {
            return Err(beyond());
        }
        if size > 0 {
            *nonzero |= 1 << at;
        }
        at += 1;
    }
    if *run > 0 {
        if band.refines {
            for at in at..=band.last {
                bits.take((*nonzero >> at & 1) as u32)?;
            }
        }
        *run -= 1;
    }
    Ok(())
}
