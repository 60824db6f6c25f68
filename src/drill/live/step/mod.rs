//! The ten steps on a cluster, one file each, but for those that are not for a cluster. A step says what it needs of the ones
//! before it, and leaves its claims untried when that is not there.

mod converge;
mod finish;
mod migrate;
mod outage;
mod preflight;
mod prove;
mod restart;
mod retire;
mod rotate;
mod seed;

use crate::live::world::Live;
use crate::script::Scene;

/// All of it, in order.
pub(crate) static SCRIPT: [Scene<Live>; 10] = [
    Scene { step: &preflight::STEP, play: preflight::play },
    Scene { step: &seed::STEP, play: seed::play },
    Scene { step: &rotate::STEP, play: rotate::play },
    Scene { step: &converge::STEP, play: converge::play },
    Scene { step: &prove::STEP, play: prove::play },
    Scene { step: &restart::STEP, play: restart::play },
    Scene { step: &migrate::STEP, play: migrate::play },
    Scene { step: &retire::STEP, play: retire::play },
    Scene { step: &outage::STEP, play: outage::play },
    Scene { step: &finish::STEP, play: finish::play },
];

/// Held when nothing is in the list.
fn none(wrong: &[String], seen: impl Into<String>) -> Result<String, String> {
    match wrong {
        [] => Ok(seen.into()),
        [first, rest @ ..] if rest.len() > 4 => Err(format!("{first}; and {} more", rest.len())),
        all => Err(all.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step;

    #[test]
    fn the_steps_are_those_of_a_rehearsal() {
        let live: Vec<_> = SCRIPT.iter().map(|scene| (scene.step.number, scene.step.name)).collect();
        let rehearsed: Vec<_> = step::SCRIPT.iter().map(|scene| (scene.step.number, scene.step.name)).collect();
        assert_eq!(live, rehearsed);
        assert!(SCRIPT.iter().all(|scene| !scene.step.claims.is_empty()));
    }
}
