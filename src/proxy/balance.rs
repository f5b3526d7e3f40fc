//! Which deployment of a name comes next: the lowest `order` first, within it a draw by weight, by
//! Pingora's load balancer.

use super::rooms::{self, Ceiling, Room, Stay};
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
    /// How much it takes.
    pub ceiling: Ceiling,
}

/// What comes next.
pub enum Next<'a> {
    /// This deployment, and the call's share of what it takes, if that is limited.
    Try(usize, &'a Arc<Deployment>, Option<Stay>),
    /// Those that are left take no more; there may be room after so many milliseconds.
    Full(u64),
    /// None is left.
    End,
}

/// The deployments of one name.
pub struct Group {
    pub name: String,
    pub deployments: Vec<Arc<Deployment>>,
    places: Vec<Place>,
    /// Of those that are limited.
    rooms: Vec<Option<Arc<Room>>>,
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
        let rooms = deployments
            .iter()
            .zip(&places)
            .map(|(d, p)| p.ceiling.is_set().then(|| rooms::of(&d.id)))
            .collect();
        Ok(Self {
            name,
            deployments,
            places,
            rooms,
            balancer,
        })
    }

    /// A deployment that is not in `tried` yet and has room for a call of so many tokens.
    pub fn next(&self, tried: &[usize], tokens: impl Fn() -> u64) -> Next<'_> {
        let mut full: Option<(Vec<usize>, u64)> = None;
        loop {
            let drawn = match &full {
                None => self.draw(tried),
                Some((skipped, _)) => self.draw(skipped),
            };
            let Some((at, deployment)) = drawn else {
                return full.map_or(Next::End, |(_, millis)| Next::Full(millis));
            };
            let (Some(Some(room)), Some(place)) = (self.rooms.get(at), self.places.get(at)) else {
                return Next::Try(at, deployment, None);
            };
            match room.enter(place.ceiling, tokens()) {
                Ok(stay) => return Next::Try(at, deployment, Some(stay)),
                Err(millis) => {
                    let (skipped, soonest) = full.get_or_insert_with(|| (tried.to_vec(), millis));
                    skipped.push(at);
                    *soonest = millis.min(*soonest);
                }
            }
        }
    }

    /// A deployment that is not in `tried`.
    fn draw(&self, tried: &[usize]) -> Option<(usize, &Arc<Deployment>)> {
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
                    ceiling: Ceiling::default(),
                },
            )
        });
        Group::new("g".into(), members.collect()).unwrap()
    }

    #[test]
    fn weights_decide_who_is_drawn() {
        let g = group(&[(9.0, 0), (1.0, 0)]);
        let first = (0..4000).filter(|_| g.draw(&[]).unwrap().0 == 0).count();
        assert!((3300..3900).contains(&first), "9 to 1 gave {first} of 4000");
        let g = group(&[(0.0, 0), (1.0, 0)]);
        assert!(
            (0..1000).all(|_| g.draw(&[]).unwrap().0 == 1),
            "a weight of nothing is never drawn"
        );
        assert_eq!(g.draw(&[1]).unwrap().0, 0, "but is there when no other is left");
    }

    #[test]
    fn each_is_tried_once() {
        let g = group(&[(1.0, 0), (1.0, 0), (1.0, 0)]);
        let mut tried = Vec::new();
        while let Some((i, _)) = g.draw(&tried) {
            assert!(!tried.contains(&i));
            tried.push(i);
        }
        assert_eq!(tried.len(), 3);
        let one = group(&[(1.0, 0)]);
        assert!(one.draw(&[]).is_some() && one.draw(&[0]).is_none());
    }

    #[test]
    fn a_lower_order_comes_first() {
        let g = group(&[(100.0, 2), (1.0, 1), (1.0, 1)]);
        for _ in 0..100 {
            let (first, _) = g.draw(&[]).unwrap();
            assert_ne!(first, 0);
            let (second, _) = g.draw(&[first]).unwrap();
            assert_ne!(second, 0);
            assert_eq!(g.draw(&[first, second]).unwrap().0, 0);
        }
    }

    #[test]
    fn one_without_room_is_passed_over() {
        let members = ["full-1", "full-2"].map(|id| {
            let mut d = testkit::deployment("openai");
            d.id = id.into();
            let place = Place {
                weight: 1.0,
                order: 0,
                retries: 0,
                ceiling: Ceiling {
                    parallel: Some(1),
                    ..Ceiling::default()
                },
            };
            (Arc::new(d), place)
        });
        let g = Group::new("g".into(), members.into()).unwrap();
        let Next::Try(first, _, stay) = g.next(&[], || 1) else {
            panic!("both have room")
        };
        let Next::Try(second, _, other) = g.next(&[], || 1) else {
            panic!("one has room")
        };
        assert_ne!(first, second);
        assert!(matches!(g.next(&[], || 1), Next::Full(1..)));
        assert!(matches!(g.next(&[first, second], || 1), Next::End));
        drop((stay, other));
        assert!(matches!(g.next(&[first], || 1), Next::Try(at, _, Some(_)) if at == second));
    }

    #[test]
    fn pauses_grow_to_a_bound() {
        let member = Place {
            weight: 1.0,
            order: 0,
            retries: 40,
            ceiling: Ceiling::default(),
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
