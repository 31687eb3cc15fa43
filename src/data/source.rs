//! Where samples come from: what `data.uri` names, listed and then read.
//!
//! - A folder with files named `…-idx3-ubyte` or `….idx3-ubyte`, gzipped or not. All of them are
//!   taken, in the order of their names, one after the other: with MNIST's four files together,
//!   first the 10,000 of `t10k`, then the 60,000 of `train`. To train on `train` alone, name that
//!   file. Labels come from the file whose name has `idx1` for `idx3` and `labels` for `images`.
//! - One IDX file of images, with its labels beside it if they are there.
//! - A folder of PNG and JPEG files (`.png`, `.jpg`, `.jpeg`, `.jpe`, `.jfif`) at any depth, in the order of their paths. If each lies in a
//!   subfolder, its label is the number of the first-level subfolder, in the order of their names.
//!   Images of other formats are ignored and counted, other files are ignored, and so is every name
//!   that begins with a dot.
//! - `stacked:` and one of the first two: triples of their images, each the three colours of one
//!   sample. Its label is made of theirs, digit by digit, if they have labels of 0 to 9.
//! - `synthetic:ring` or `synthetic:grid`: points of a plane, with the numbers of their modes.

use super::error::{DataError, io};
use super::manifest::Shape;
use super::mixture::Mixture;
use super::{idx, images};
use crate::config::Data;
use crate::random::{Domain, Key};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// A source that has been listed, but not read.
#[derive(Debug, PartialEq)]
pub(super) struct Source {
    uri: String,
    /// Absolute, without links. All files are below it.
    pub(super) root: PathBuf,
    /// Every file that samples come from, in order.
    pub(super) files: Vec<SourceFile>,
    /// Files beside those that look like images, of formats that aren't read.
    pub(super) ignored: u64,
    kind: Kind,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct SourceFile {
    /// Relative to the root.
    pub(super) name: PathBuf,
    pub(super) bytes: u64,
    /// Nanoseconds since 1970; 0 where the file system doesn't know.
    pub(super) modified: u128,
}

#[derive(Debug, PartialEq)]
enum Kind {
    /// Indices into `files`: images, and their labels.
    Idx(Pairs),
    /// One image a file.
    Images,
    /// So many triples, by this seed, of the images in IDX files.
    Stacked {
        pairs: Pairs,
        samples: u64,
        seed: u64,
    },
    /// So many points, by this seed.
    Mixture {
        mixture: Mixture,
        samples: u64,
        seed: u64,
    },
}

impl Source {
    /// Lists what `data.uri` names.
    pub(super) fn of(data: &Data) -> Result<Self, DataError> {
        if let Some(mixture) = Mixture::of(data) {
            return Ok(Self {
                uri: data.uri.clone(),
                root: PathBuf::from(&data.uri),
                files: Vec::new(),
                ignored: 0,
                kind: Kind::Mixture {
                    mixture,
                    samples: data.synthetic.samples,
                    seed: data.synthetic.seed,
                },
            });
        }
        let mut source = Self::find(data.path().unwrap_or(&data.uri))?;
        if data.is_stacked() {
            let Kind::Idx(pairs) = source.kind else {
                return Err(DataError::Source {
                    path: source.root,
                    reason: "holds no IDX files of images, and only those can be stacked"
                        .to_owned(),
                });
            };
            source.kind = Kind::Stacked {
                pairs,
                samples: data.stacked.samples,
                seed: data.stacked.seed,
            };
        }
        Ok(source)
    }

    /// What the samples depend on beside the files, if anything.
    pub(super) fn settings(&self) -> Option<String> {
        match &self.kind {
            Kind::Idx(_) | Kind::Images => None,
            kind => Some(format!("{kind:?}")),
        }
    }

    /// Lists the files that `uri` names.
    fn find(uri: &str) -> Result<Self, DataError> {
        let path = Path::new(uri.strip_prefix("file://").unwrap_or(uri));
        let found = match std::fs::metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(DataError::Missing {
                    path: path.to_owned(),
                });
            }
            found => found.map_err(io("look at it", path))?,
        };
        let path = path.canonicalize().map_err(io("look at it", path))?;
        let (root, idx) = if found.is_dir() {
            let idx = idx_images(&path)?;
            (path, idx)
        } else {
            let name = path.file_name().map(PathBuf::from).unwrap_or_default();
            (path.parent().unwrap_or(&path).to_owned(), vec![name])
        };
        let (files, ignored, kind) = if idx.is_empty() {
            let (files, ignored) = list_images(&root)?;
            (files, ignored, Kind::Images)
        } else {
            let (files, pairs) = list_idx(&root, idx)?;
            (files, 0, Kind::Idx(pairs))
        };
        Ok(Self {
            uri: uri.to_owned(),
            root,
            files,
            ignored,
            kind,
        })
    }

    /// Whether the same files are still there, unchanged as far as sizes and times tell.
    pub(super) fn is_unchanged(&self) -> Result<bool, DataError> {
        match &self.kind {
            Kind::Mixture { .. } => Ok(true),
            _ => Ok(Self::find(&self.uri)?.files == self.files),
        }
    }

    /// Reads what is to be in memory: IDX files whole, of images their names and classes.
    pub(super) fn read(&self) -> Result<Samples, DataError> {
        match &self.kind {
            Kind::Idx(pairs) => read_idx(&self.root, &self.files, pairs),
            Kind::Stacked {
                pairs,
                samples,
                seed,
            } => {
                let images = read_idx(&self.root, &self.files, pairs)?;
                stack(images, *samples, *seed, &self.root)
            }
            Kind::Mixture {
                mixture,
                samples,
                seed,
            } => Ok(Samples::Mixture {
                labels: (0..*samples).map(|index| mixture.mode(index)).collect(),
                mixture: mixture.clone(),
                seed: *seed,
            }),
            Kind::Images => {
                let classes: Option<Vec<&OsStr>> =
                    self.files.iter().map(|file| class(&file.name)).collect();
                let labels = classes.map(|classes| {
                    let names: BTreeSet<&OsStr> = classes.iter().copied().collect();
                    let names: Vec<&OsStr> = names.into_iter().collect();
                    let number = |class| names.partition_point(|&name| name < class) as u32;
                    classes.into_iter().map(number).collect()
                });
                Ok(Samples::Files {
                    paths: self.files.iter().map(|f| self.root.join(&f.name)).collect(),
                    labels,
                })
            }
        }
    }
}

impl SourceFile {
    fn at(root: &Path, name: PathBuf) -> Result<Self, DataError> {
        let path = root.join(&name);
        let found = std::fs::metadata(&path).map_err(io("look at it", path))?;
        Ok(Self::of(name, &found))
    }

    fn of(name: PathBuf, found: &Metadata) -> Self {
        let modified = found
            .modified()
            .ok()
            .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        Self {
            name,
            bytes: found.len(),
            modified: modified.map_or(0, |since| since.as_nanos()),
        }
    }
}

/// The samples of a source, ready to be taken in any order and by many threads.
pub(super) enum Samples {
    Idx {
        /// Each file with the number of its first sample.
        files: Vec<(u64, PathBuf, idx::Images)>,
        labels: Option<Vec<u32>>,
        count: u64,
    },
    Files {
        paths: Vec<PathBuf>,
        labels: Option<Vec<u32>>,
    },
    Stacked {
        images: Box<Samples>,
        /// Which of them each sample consists of.
        triples: Vec<[u64; 3]>,
        labels: Option<Vec<u32>>,
    },
    Mixture {
        mixture: Mixture,
        seed: u64,
        labels: Vec<u32>,
    },
}

impl Samples {
    pub(super) fn count(&self) -> u64 {
        match self {
            Samples::Idx { count, .. } => *count,
            Samples::Files { paths, .. } => paths.len() as u64,
            Samples::Stacked { triples, .. } => triples.len() as u64,
            Samples::Mixture { labels, .. } => labels.len() as u64,
        }
    }

    pub(super) fn labels(&self) -> Option<&[u32]> {
        match self {
            Samples::Idx { labels, .. }
            | Samples::Files { labels, .. }
            | Samples::Stacked { labels, .. } => labels.as_deref(),
            Samples::Mixture { labels, .. } => Some(labels),
        }
    }

    /// The values of sample `index`, `[channels, size, size]`, as bytes.
    ///
    /// # Panics
    /// If there is no such sample.
    pub(super) fn pixels(&self, index: u64, shape: &Shape) -> Result<Vec<u8>, DataError> {
        match self {
            Samples::Idx { files, .. } => {
                // The last file that begins at or before the sample; the first begins at 0.
                let file = files.partition_point(|(first, _, _)| *first <= index) - 1;
                let (first, path, images) = &files[file];
                let index = index - first;
                let name = || format!("{}, image {index}", path.display());
                let size = (images.columns, images.rows);
                images::fit_grey(size, images.pixels(index), shape, name)
            }
            Samples::Files { paths, .. } => images::read(&paths[index as usize], shape),
            Samples::Stacked {
                images, triples, ..
            } => {
                let grey = Shape {
                    channels: 1,
                    ..*shape
                };
                let mut planes = Vec::with_capacity(shape.bytes());
                for image in triples[index as usize] {
                    planes.extend(images.pixels(image, &grey)?);
                }
                Ok(planes)
            }
            Samples::Mixture { mixture, seed, .. } => {
                let point = mixture.point(*seed, index);
                Ok(point.into_iter().flat_map(f32::to_le_bytes).collect())
            }
        }
    }
}

fn read_idx(root: &Path, files: &[SourceFile], pairs: &Pairs) -> Result<Samples, DataError> {
    let mut read = Vec::new();
    let mut labels = Vec::new();
    let mut count = 0;
    for &(images, label_file) in pairs {
        let path = root.join(&files[images].name);
        let images = idx::read_images(&path)?;
        if let Some(file) = label_file {
            let path = root.join(&files[file].name);
            let found = idx::read_labels(&path)?;
            if found.len() as u64 != images.count {
                return Err(DataError::Idx {
                    path,
                    found: format!("it has {} labels", found.len()),
                    expected: format!("{}, one for each image", images.count),
                });
            }
            labels.extend(found.into_iter().map(u32::from));
        }
        // A file without images would share its first sample's number with the next file.
        if images.count > 0 {
            let first = count;
            count += images.count;
            read.push((first, path, images));
        }
    }
    if count == 0 {
        return Err(DataError::Empty {
            path: root.to_owned(),
            looked_for: "IDX files with at least one image",
        });
    }
    let labelled = pairs.iter().all(|(_, labels)| labels.is_some());
    Ok(Samples::Idx {
        files: read,
        labels: labelled.then_some(labels),
        count,
    })
}

/// So many triples of these images.
fn stack(images: Samples, samples: u64, seed: u64, root: &Path) -> Result<Samples, DataError> {
    let count = images.count();
    let triples: Vec<[u64; 3]> = (0..samples)
        .map(|index| {
            let mut stream = Key::new(Domain::Stacked, &[seed, index]).stream();
            [(); 3].map(|()| stream.below(count))
        })
        .collect();
    let labels = images.labels().map(|labels| {
        if let Some(label) = labels.iter().find(|&&label| label > 9) {
            return Err(DataError::Source {
                path: root.to_owned(),
                reason: format!(
                    "has the label {label}, but labels of stacked images are digits, 0 to 9"
                ),
            });
        }
        let digit = |image: u64| labels[image as usize];
        let number = |&[a, b, c]: &[u64; 3]| 100 * digit(a) + 10 * digit(b) + digit(c);
        Ok(triples.iter().map(number).collect())
    });
    Ok(Samples::Stacked {
        labels: labels.transpose()?,
        images: Box::new(images),
        triples,
    })
}

type Pairs = Vec<(usize, Option<usize>)>;

fn list_idx(root: &Path, images: Vec<PathBuf>) -> Result<(Vec<SourceFile>, Pairs), DataError> {
    let mut files = Vec::new();
    let mut pairs = Vec::new();
    for name in images {
        let labels = label_file(root, &name);
        let images = files.len();
        files.push(SourceFile::at(root, name)?);
        let labels = match labels {
            Some(labels) => {
                files.push(SourceFile::at(root, labels)?);
                Some(images + 1)
            }
            None => None,
        };
        pairs.push((images, labels));
    }
    let with = pairs.iter().find(|(_, labels)| labels.is_some());
    let without = pairs.iter().find(|(_, labels)| labels.is_none());
    if let (Some((with, _)), Some((without, _))) = (with, without) {
        return Err(DataError::Source {
            path: root.join(&files[*without].name),
            reason: format!(
                "has no file of labels beside it, while {} has one; add it, or remove the other",
                files[*with].name.display()
            ),
        });
    }
    Ok((files, pairs))
}

/// The images below `root`, and how many there are of formats that aren't read.
fn list_images(root: &Path) -> Result<(Vec<SourceFile>, u64), DataError> {
    let mut files = Vec::new();
    let mut foreign = Vec::new();
    walk(root, Path::new(""), &mut files, &mut foreign)?;
    files.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(first) = foreign.first() {
        tracing::warn!(
            ignored = foreign.len(),
            "images that are neither PNG nor JPEG are ignored, {} among them",
            root.join(first).display()
        );
    }
    if files.is_empty() {
        return Err(DataError::Empty {
            path: root.to_owned(),
            looked_for: "files *-idx3-ubyte, *.idx3-ubyte (also .gz) in it, and *.png, *.jpg, \
                         *.jpeg at any depth",
        });
    }
    Ok((files, foreign.len() as u64))
}

/// The names of the IDX files of images in `folder`, sorted; of `x` and `x.gz`, only `x`.
fn idx_images(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(folder).map_err(io("list it", folder))? {
        let name = entry.map_err(io("list it", folder))?.file_name();
        let Some(name) = name.to_str() else { continue };
        let plain = name.strip_suffix(".gz").unwrap_or(name);
        let idx = plain.ends_with("-idx3-ubyte") || plain.ends_with(".idx3-ubyte");
        if idx && !name.starts_with('.') && folder.join(name).is_file() {
            names.insert(name.to_owned());
        }
    }
    let twice = |name: &String| {
        name.strip_suffix(".gz")
            .is_some_and(|plain| names.contains(plain))
    };
    let names = names.iter().filter(|name| !twice(name));
    Ok(names.map(PathBuf::from).collect())
}

/// The file of labels that belongs to a file of images, if it is there.
fn label_file(folder: &Path, images: &Path) -> Option<PathBuf> {
    let images = images.to_str()?;
    let plain = images.strip_suffix(".gz").unwrap_or(images);
    let (stem, _) = plain.rsplit_once("idx3")?;
    let stem = match stem.rsplit_once("images") {
        Some((before, after)) => format!("{before}labels{after}"),
        None => stem.to_owned(),
    };
    [format!("{stem}idx1-ubyte"), format!("{stem}idx1-ubyte.gz")]
        .into_iter()
        .find(|name| folder.join(name).is_file())
        .map(PathBuf::from)
}

/// The first-level subfolder of an image.
fn class(name: &Path) -> Option<&OsStr> {
    let mut parts = name.iter();
    let first = parts.next()?;
    parts.next().map(|_| first)
}

/// Collects the images below `root/folder`, and the images of other formats.
fn walk(
    root: &Path,
    folder: &Path,
    files: &mut Vec<SourceFile>,
    foreign: &mut Vec<PathBuf>,
) -> Result<(), DataError> {
    let path = root.join(folder);
    for entry in std::fs::read_dir(&path).map_err(io("list it", &path))? {
        let entry = entry.map_err(io("list it", &path))?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let name = folder.join(entry.file_name());
        let path = entry.path();
        // Follows links, as people link data sets together.
        let found = std::fs::metadata(&path).map_err(io("look at it", &path))?;
        if found.is_dir() {
            check_no_loop(&path)?;
            walk(root, &name, files, foreign)?;
            continue;
        }
        let extension = name.extension().and_then(OsStr::to_str).unwrap_or("");
        match extension.to_ascii_lowercase().as_str() {
            "png" | "jpg" | "jpeg" | "jpe" | "jfif" if found.is_file() => {
                files.push(SourceFile::of(name, &found))
            }
            "webp" | "gif" | "bmp" | "tif" | "tiff" | "avif" | "heic" | "heif" | "jxl" | "jp2"
            | "apng" | "svg" | "tga" | "ppm" | "pgm" | "pnm"
                if found.is_file() =>
            {
                foreign.push(name);
            }
            _ => {}
        }
    }
    Ok(())
}

/// Refuses a link to one of the folders that it lies in.
fn check_no_loop(folder: &Path) -> Result<(), DataError> {
    let parent = folder.parent().unwrap_or(folder);
    let target = folder.canonicalize().map_err(io("look at it", folder))?;
    let parent = parent.canonicalize().map_err(io("look at it", parent))?;
    if parent.starts_with(&target) {
        return Err(DataError::Source {
            path: folder.to_owned(),
            reason: "is a link to a folder that it lies in; remove it".to_owned(),
        });
    }
    Ok(())
}
