//! Which deployment of a name comes next: the lowest `order` first, within it a draw by weight, by
//! Pingora's load balancer.

use filters::model::deployment::Deployment;
use futures::FutureExt;
use pingora_load_balancing::discovery::Static;
use pingora_load_balancing::selection::Random;
use pingora_load_balancing::{Backend, Backends, LoadBalancer};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// The selector holds one slot per unit of weight, so weights are scaled to at most this many each.
const MOST_WEIGHT: f64 = 100.0;
/// Before the first retry; doubled with each.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// A deployment's place among those of its name.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Share of the calls; 0 = only when no other is left.
    pub weight: f64,
    /// Lower is tried first.
    pub order: i64,
    /// How often the whole group is tried again when every deployment has failed.
    pub retries: u32,
}

/// The deployments of one name.
pub struct Group {
    pub name: String,
    pub deployments: Vec<Arc<Deployment>>,
    places: Vec<Place>,
    balancer: Option<LoadBalancer<Random>>,
}

impl Group {
    /// `Err` says why the balancer cannot be built.
    pub fn new(name: String, members: Vec<(Arc<Deployment>, Place)>) -> Result<Self, String> {
        let (deployments, places): (Vec<_>, Vec<_>) = members.into_iter().unzip();
        let balancer = if deployments.len() > 1 {
            Some(balancer(&places)?)
        } else {
            None
        };
        Ok(Self {
            name,
            deployments,
            places,
            balancer,
        })
    }

    /// A deployment that is not in `tried` yet.
    pub fn next(&self, tried: &[usize]) -> Option<(usize, &Arc<Deployment>)> {
        let untried = |i: &usize| !tried.contains(i);
        let order = (0..self.places.len())
            .filter(untried)
            .map(|i| self.order(i))
            .min()?;
        let eligible = |i: &usize| untried(i) && self.order(*i) == order;
        let drawn = self.balancer.as_ref().and_then(|b| {
            // The key is the randomness: the selector hashes it into the weighted slots.
            let key = rand::random::<u64>().to_le_bytes();
            let accept =
                |backend: &Backend, _| index(backend).is_some_and(|i| eligible(&i) && self.weighs(i));
            b.select_with(&key, self.deployments.len() * 2, accept)
        });
        let all = 0..self.deployments.len();
        let at = drawn
            .as_ref()
            .and_then(index)
            .or_else(|| all.clone().find(|i| eligible(i) && self.weighs(*i)))
            .or_else(|| all.clone().find(eligible))?;
        self.deployments.get(at).map(|d| (at, d))
    }

    /// How long to wait before the group is tried again for the `round`-th time (0 = the first retry);
    /// None = it is not.
    pub fn pause(&self, round: u32) -> Option<Duration> {
        let retries = self.places.iter().map(|p| p.retries).max().unwrap_or(0);
        (round < retries).then(|| FIRST_PAUSE.saturating_mul(1 << round.min(10)).min(LONGEST_PAUSE))
    }

    fn weighs(&self, at: usize) -> bool {
        self.places.get(at).is_some_and(|p| p.weight > 0.0)
    }

    fn order(&self, at: usize) -> i64 {
        self.places.get(at).map_or(i64::MAX, |p| p.order)
    }
}

fn balancer(places: &[Place]) -> Result<LoadBalancer<Random>, String> {
    let heaviest = places.iter().map(|p| p.weight).fold(0.0, f64::max);
    let scale = if heaviest > 0.0 {
        MOST_WEIGHT / heaviest
    } else {
        1.0
    };
    let backends = places
        .iter()
        .enumerate()
        .map(|(i, p)| backend(i, ((p.weight * scale).round() as usize).max(1)))
        .collect::<Result<BTreeSet<Backend>, String>>()?;
    let balancer = LoadBalancer::from_backends(Backends::new(Static::new(backends)));
    // A static discovery is ready at once.
    balancer
        .update()
        .now_or_never()
        .ok_or("the balancer did not become ready")?
        .map_err(|e| e.to_string())?;
    Ok(balancer)
}

/// The balancer knows backends by address, and two deployments may share one. So a backend is named
/// by its place in the group, as a port of the unspecified address, and never connected to.
fn backend(at: usize, weight: usize) -> Result<Backend, String> {
    let port = u16::try_from(at + 1).map_err(|_| "a name has at most 65535 deployments".to_string())?;
    Backend::new_with_weight(&format!("0.0.0.0:{port}"), weight).map_err(|e| e.to_string())
}

fn index(backend: &Backend) -> Option<usize> {
    backend
        .addr
        .as_inet()
        .map(|a| usize::from(a.port()).saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use filters::testkit;

    fn group(members: &[(f64, i64)]) -> Group {
        let members = members.iter().map(|(weight, order)| {
            (
                Arc::new(testkit::deployment("openai")),
                Place {
                    weight: *weight,
                    order: *order,
                    retries: 0,
                },
            )
        });
        Group::new("g".into(), members.collect()).unwrap()
    }

    #[test]
    fn weights_decide_who_is_drawn() {
        let g = group(&[(9.0, 0), (1.0, 0)]);
        let first = (0..4000).filter(|_| g.next(&[]).unwrap().0 == 0).count();
        assert!((3300..3900).contains(&first), "9 to 1 gave {first} of 4000");
        let g = group(&[(0.0, 0), (1.0, 0)]);
        assert!(
            (0..1000).all(|_| g.next(&[]).unwrap().0 == 1),
            "a weight of nothing is never drawn"
        );
        assert_eq!(g.next(&[1]).unwrap().0, 0, "but is there when no other is left");
    }

    #[test]
    fn each_is_tried_once() {
        let g = group(&[(1.0, 0), (1.0, 0), (1.0, 0)]);
        let mut tried = Vec::new();
        while let Some((i, _)) = g.next(&tried) {
            assert!(!tried.contains(&i));
            tried.push(i);
        }
        assert_eq!(tried.len(), 3);
        let one = group(&[(1.0, 0)]);
        assert!(one.next(&[]).is_some() && one.next(&[0]).is_none());
    }

    #[test]
    fn a_lower_order_comes_first() {
        let g = group(&[(100.0, 2), (1.0, 1), (1.0, 1)]);
        for _ in 0..100 {
            let (first, _) = g.next(&[]).unwrap();
            assert_ne!(first, 0);
            let (second, _) = g.next(&[first]).unwrap();
            assert_ne!(second, 0);
            assert_eq!(g.next(&[first, second]).unwrap().0, 0);
        }
    }

    #[test]
    fn pauses_grow_to_a_bound() {
        let member = Place {
            weight: 1.0,
            order: 0,
            retries: 40,
        };
        let g = Group::new(
            "g".into(),
            vec![(Arc::new(testkit::deployment("openai")), member)],
        )
        .unwrap();
        let pauses: Vec<_> = (0..6).map(|r| g.pause(r).unwrap().as_millis()).collect();
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 8000]);
        assert_eq!(g.pause(40), None);
    }
}
