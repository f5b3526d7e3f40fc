//! Which deployment of a name comes first: a draw by weight, by Pingora's load balancer.

use filters::model::deployment::Deployment;
use futures::FutureExt;
use pingora_load_balancing::discovery::Static;
use pingora_load_balancing::selection::Random;
use pingora_load_balancing::{Backend, Backends, LoadBalancer};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The selector holds one slot per unit of weight, so weights are scaled to at most this many each.
const MOST_WEIGHT: f64 = 100.0;

/// The deployments of one name.
pub struct Group {
    pub name: String,
    pub deployments: Vec<Arc<Deployment>>,
    balancer: Option<LoadBalancer<Random>>,
}

impl Group {
    /// `Err` says why the balancer cannot be built.
    pub fn new(name: String, deployments: Vec<(Arc<Deployment>, f64)>) -> Result<Self, String> {
        let heaviest = deployments.iter().map(|(_, w)| *w).fold(0.0, f64::max);
        let scale = if heaviest > 0.0 {
            MOST_WEIGHT / heaviest
        } else {
            1.0
        };
        let balancer = if deployments.len() > 1 {
            let backends = deployments
                .iter()
                .enumerate()
                .map(|(i, (_, weight))| backend(i, ((weight * scale).round() as usize).max(1)))
                .collect::<Result<BTreeSet<Backend>, String>>()?;
            let balancer = LoadBalancer::from_backends(Backends::new(Static::new(backends)));
            // A static discovery is ready at once.
            balancer
                .update()
                .now_or_never()
                .ok_or("the balancer did not become ready")?
                .map_err(|e| e.to_string())?;
            Some(balancer)
        } else {
            None
        };
        Ok(Self {
            name,
            deployments: deployments.into_iter().map(|(d, _)| d).collect(),
            balancer,
        })
    }

    /// A deployment that is not in `tried` yet, drawn by weight.
    pub fn next(&self, tried: &[usize]) -> Option<(usize, &Arc<Deployment>)> {
        let untried = |i: usize| !tried.contains(&i);
        let drawn = self.balancer.as_ref().and_then(|b| {
            // The key is the randomness: the selector hashes it into the weighted slots.
            let key = rand::random::<u64>().to_le_bytes();
            b.select_with(&key, self.deployments.len() * 2, |backend, _| {
                index(backend).is_some_and(untried)
            })
        });
        let at = drawn
            .as_ref()
            .and_then(index)
            .or_else(|| (0..self.deployments.len()).find(|i| untried(*i)))?;
        self.deployments.get(at).map(|d| (at, d))
    }
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

    fn group(weights: &[f64]) -> Group {
        let deployments = weights
            .iter()
            .map(|w| (Arc::new(testkit::deployment("openai")), *w))
            .collect();
        Group::new("g".into(), deployments).unwrap()
    }

    #[test]
    fn weights_decide_who_is_drawn() {
        let g = group(&[9.0, 1.0]);
        let first = (0..4000).filter(|_| g.next(&[]).unwrap().0 == 0).count();
        assert!((3300..3900).contains(&first), "9 to 1 gave {first} of 4000");
    }

    #[test]
    fn each_is_tried_once() {
        let g = group(&[1.0, 1.0, 1.0]);
        let mut tried = Vec::new();
        while let Some((i, _)) = g.next(&tried) {
            assert!(!tried.contains(&i));
            tried.push(i);
        }
        assert_eq!(tried.len(), 3);
        let one = group(&[1.0]);
        assert!(one.next(&[]).is_some() && one.next(&[0]).is_none());
    }
}
