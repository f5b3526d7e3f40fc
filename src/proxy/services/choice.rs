//! Which backend is next. Pure: who is well is asked of the caller.

use parking_lot::Mutex;

/// Takes turns by weight, smoothly (as nginx does): 5, 1, 1 gives a a b a c a a, and not five times a in a
/// row. Each of any so many turns in a row is within one of its exact share.
pub struct Turns {
    weights: Vec<u32>,
    credits: Mutex<Vec<i64>>,
}

impl Turns {
    pub fn new(weights: Vec<u32>) -> Self {
        Self {
            credits: Mutex::new(vec![0; weights.len()]),
            weights,
        }
    }

    /// The next one of those that may be taken. One of weight 0 has a turn only where nobody else may.
    pub fn next(&self, may: impl Fn(usize) -> bool) -> Option<usize> {
        let weighty = self.turn(|at, weight| (weight > 0 && may(at)).then_some(weight));
        weighty.or_else(|| self.turn(|at, weight| (weight == 0 && may(at)).then_some(1)))
    }

    fn turn(&self, weight: impl Fn(usize, u32) -> Option<u32>) -> Option<usize> {
        let mut credits = self.credits.lock();
        let mut best: Option<(i64, usize)> = None;
        let mut total = 0;
        for (at, (credit, own)) in credits.iter_mut().zip(&self.weights).enumerate() {
            let Some(weight) = weight(at, *own) else { continue };
            *credit += i64::from(weight);
            total += i64::from(weight);
            if best.is_none_or(|(most, _)| *credit > most) {
                best = Some((*credit, at));
            }
        }
        let (_, at) = best?;
        if let Some(credit) = credits.get_mut(at) {
            *credit -= total;
        }
        Some(at)
    }

    /// The one with the fewest requests for its weight; among equals by turns.
    pub fn idlest(&self, load: impl Fn(usize) -> usize, may: impl Fn(usize) -> bool) -> Option<usize> {
        // a / x < b / y, without a division.
        let share = |at: usize, weight: u32| (load(at) as u128, u128::from(weight.max(1)));
        let mut least: Option<(u128, u128)> = None;
        for (at, weight) in self.weights.iter().enumerate() {
            if *weight == 0 || !may(at) {
                continue;
            }
            let (load, weight) = share(at, *weight);
            if least.is_none_or(|(l, w)| load * w < l * weight) {
                least = Some((load, weight));
            }
        }
        let Some((l, w)) = least else {
            return self.next(may);
        };
        self.next(|at| {
            let weight = self.weights.get(at).copied().unwrap_or(0);
            let (load, share) = share(at, weight);
            weight > 0 && may(at) && load * w == l * share
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(turns: &Turns, n: usize, may: impl Fn(usize) -> bool) -> Vec<usize> {
        (0..n).map(|_| turns.next(&may).unwrap()).collect()
    }

    #[test]
    fn turns_are_smooth_and_exact() {
        let turns = Turns::new(vec![5, 1, 1]);
        assert_eq!(drawn(&turns, 7, |_| true), [0, 0, 1, 0, 2, 0, 0]);
        let turns = Turns::new(vec![7, 2, 1, 0]);
        let all = drawn(&turns, 1_000, |_| true);
        let counts: Vec<usize> = (0..4).map(|i| all.iter().filter(|d| **d == i).count()).collect();
        assert_eq!(counts, [700, 200, 100, 0]);
        let without = drawn(&turns, 300, |at| at != 0);
        let ones = without.iter().filter(|d| **d == 1).count();
        assert!((199..=201).contains(&ones), "{ones} of 300");
        assert_eq!(
            drawn(&turns, 2, |at| at == 3),
            [3, 3],
            "the spare one, when it is alone"
        );
        assert_eq!(turns.next(|_| false), None);
    }

    #[test]
    fn the_idlest_for_its_weight() {
        let turns = Turns::new(vec![1, 2, 0]);
        let loads = |loads: [usize; 3]| move |at: usize| loads[at];
        assert_eq!(turns.idlest(loads([1, 1, 0]), |_| true), Some(1));
        assert_eq!(turns.idlest(loads([0, 1, 0]), |_| true), Some(0));
        assert_eq!(turns.idlest(loads([3, 1, 0]), |at| at != 1), Some(0));
        assert_eq!(turns.idlest(loads([3, 1, 9]), |at| at == 2), Some(2));
        let even: Vec<_> = (0..3).map(|_| turns.idlest(loads([1, 2, 0]), |_| true)).collect();
        assert!(
            even.contains(&Some(0)) && even.contains(&Some(1)),
            "equals take turns"
        );
    }
}
