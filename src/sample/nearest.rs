//! PURE. Which of many images lie nearest to some.
//!
//! Distances are sums of squared differences of bytes, exact whole numbers; so the answer is the
//! same in whichever order images are looked at.

/// An image that lies near.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neighbour {
    /// Sum of squared differences, over all bytes.
    pub squared: u64,
    /// Its place among the images that were looked at.
    pub place: u64,
}

impl Neighbour {
    /// The root of the mean squared difference, in steps of 1/255 of the range of a pixel.
    pub fn distance(&self, bytes: usize) -> f64 {
        (self.squared as f64 / bytes.max(1) as f64).sqrt()
    }
}

/// The nearest few, nearest first. Of equal distances the smaller place comes first.
#[derive(Clone, Debug)]
pub struct Nearest {
    most: usize,
    found: Vec<Neighbour>,
}

impl Nearest {
    /// Will keep at most so many.
    pub fn new(most: usize) -> Self {
        Self {
            most,
            found: Vec::with_capacity(most + 1),
        }
    }

    /// Takes a neighbour in, if it is near enough.
    pub fn offer(&mut self, neighbour: Neighbour) {
        let place = self.found.partition_point(|other| *other < neighbour);
        if place < self.most {
            self.found.insert(place, neighbour);
            self.found.truncate(self.most);
        }
    }

    /// Takes in what others have found.
    pub fn merge(&mut self, others: &Nearest) {
        for &neighbour in &others.found {
            self.offer(neighbour);
        }
    }

    /// Those that were kept, nearest first.
    pub fn found(&self) -> &[Neighbour] {
        &self.found
    }
}

/// The sum of squared differences of two images' bytes.
pub fn squared_distance(a: &[u8], b: &[u8]) -> u64 {
    // 2^16 squares of a byte's difference fit in 32 bits, which vector instructions add faster.
    let parts = a.chunks(1 << 16).zip(b.chunks(1 << 16));
    let sums = parts.map(|(a, b)| {
        let squares = a.iter().zip(b).map(|(&a, &b)| {
            let difference = u32::from(a.abs_diff(b));
            difference * difference
        });
        u64::from(squares.sum::<u32>())
    });
    sums.sum()
}

/// The middle one of some distances; of an even number, the lower of the middle two.
pub fn median(mut distances: Vec<f64>) -> Option<f64> {
    distances.sort_by(f64::total_cmp);
    distances
        .get(distances.len().saturating_sub(1) / 2)
        .copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_exact() {
        assert_eq!(squared_distance(&[0, 255, 7], &[255, 0, 9]), 2 * 65_025 + 4);
        let (black, white) = (vec![0; 200_000], vec![255; 200_000]);
        assert_eq!(squared_distance(&black, &white), 200_000 * 65_025);
        let one = Neighbour {
            squared: 400,
            place: 0,
        };
        assert_eq!(one.distance(4), 10.0);
    }

    #[test]
    fn the_nearest_are_kept_in_whatever_order_they_come() {
        let all: Vec<Neighbour> = [9, 4, 7, 4, 1, 8]
            .into_iter()
            .zip(0..)
            .map(|(squared, place)| Neighbour { squared, place })
            .collect();
        let expected = [(1, 4), (4, 1), (4, 3)];
        let told = |nearest: &Nearest| {
            let found = nearest.found().iter();
            found.map(|n| (n.squared, n.place)).collect::<Vec<_>>()
        };
        let mut forwards = Nearest::new(3);
        all.iter().for_each(|&n| forwards.offer(n));
        assert_eq!(told(&forwards), expected);
        let mut halves = [Nearest::new(3), Nearest::new(3)];
        for n in all.into_iter().rev() {
            halves[(n.place % 2) as usize].offer(n);
        }
        let [mut one, other] = halves;
        one.merge(&other);
        assert_eq!(told(&one), expected);
        let mut none = Nearest::new(0);
        none.offer(Neighbour {
            squared: 0,
            place: 0,
        });
        assert!(none.found().is_empty());
    }

    #[test]
    fn a_median_is_one_of_its_numbers() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.0));
        assert_eq!(median(Vec::new()), None);
    }
}
