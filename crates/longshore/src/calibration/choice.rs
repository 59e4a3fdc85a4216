//! Which samples are taken, and in which order.

/// `SplitMix64` (Steele, Lea and Flood 2014): the same numbers on every machine, for ever.
pub(super) struct SplitMix64(u64);

impl SplitMix64 {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, each with the same probability up to n / 2^64.
    pub(super) fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }

    /// A uniform order (Fisher and Yates).
    pub(super) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

/// Takes at most `limit` of the items that are offered: the first ones where the seed is 0, as ModelOpt does, else a
/// uniform draw in uniform order (reservoir sampling, Vitter's algorithm R, and a Fisher-Yates shuffle).
pub(super) struct Choice<T> {
    limit: usize,
    offered: u64,
    taken: Vec<T>,
    random: Option<SplitMix64>,
}

impl<T> Choice<T> {
    pub(super) fn new(limit: usize, seed: u64) -> Self {
        let random = (seed != 0).then(|| SplitMix64::new(seed));
        Self { limit, offered: 0, taken: Vec::new(), random }
    }

    /// Whether nothing that is offered from here on can be taken.
    pub(super) fn is_settled(&self) -> bool {
        self.random.is_none() && self.taken.len() == self.limit
    }

    pub(super) fn offer(&mut self, item: T) {
        self.offered += 1;
        if self.taken.len() < self.limit {
            self.taken.push(item);
        } else if let Some(random) = &mut self.random {
            let place = random.below(self.offered);
            if let Some(taken) = usize::try_from(place).ok().and_then(|place| self.taken.get_mut(place)) {
                *taken = item;
            }
        }
    }

    /// How many items were offered.
    pub(super) fn offered(&self) -> u64 {
        self.offered
    }

    pub(super) fn finish(mut self) -> Vec<T> {
        if let Some(random) = &mut self.random {
            random.shuffle(&mut self.taken);
        }
        self.taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(limit: usize, seed: u64, items: u64) -> Vec<u64> {
        let mut choice = Choice::new(limit, seed);
        (0..items).for_each(|item| choice.offer(item));
        assert_eq!(choice.offered(), items);
        choice.finish()
    }

    #[test]
    fn the_generator_gives_its_published_numbers() {
        let mut random = SplitMix64::new(1_234_567);
        let numbers = [random.next(), random.next(), random.next()];
        assert_eq!(numbers, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn seed_0_takes_the_first_in_order() {
        assert_eq!(choose(3, 0, 10), [0, 1, 2]);
        assert_eq!(choose(3, 0, 2), [0, 1]);
        let mut choice = Choice::new(1, 0);
        assert!(!choice.is_settled());
        choice.offer('a');
        assert!(choice.is_settled());
        let mut drawn = Choice::new(1, 1);
        drawn.offer('a');
        assert!(!drawn.is_settled());
    }

    #[test]
    fn another_seed_draws_the_same_items_each_time_and_others_than_another_seed() {
        let drawn = choose(10, 1, 1000);
        assert_eq!(drawn, choose(10, 1, 1000));
        assert_ne!(drawn, choose(10, 2, 1000));
        let mut all = choose(10, 5, 10);
        assert_ne!(all, choose(10, 0, 10));
        all.sort_unstable();
        assert_eq!(all, choose(10, 0, 10));
    }

    #[test]
    fn every_item_is_drawn_equally_often_at_every_place() {
        let mut drawn = [[0u32; 6]; 2];
        for seed in 1..=6000 {
            for (place, item) in choose(2, seed, 6).into_iter().enumerate() {
                drawn[place][item as usize] += 1;
            }
        }
        // 1,000 expected with a standard deviation of 29.
        assert!(drawn.as_flattened().iter().all(|n| (880..1120).contains(n)), "{drawn:?}");
    }
}
