//! The ten steps of a rehearsal, one file each. A step says what it needs of the ones before it, and leaves its claims untried
//! when that is not there.

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

use crate::script::Scene;
use crate::world::World;

/// Objects that are sealed before the rotation.
pub(crate) const OLD: &str = "old";
/// Objects that are sealed after it.
pub(crate) const NEW: &str = "new";

/// All of it, in order.
pub(crate) static SCRIPT: [Scene<World>; 10] = [
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

/// `{n} ms`, for a detail.
fn ms(time: std::time::Duration) -> String {
    format!("{} ms", crate::claim::millis(time))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steps_are_numbered_and_named_as_documented() {
        let all: Vec<_> = SCRIPT.iter().map(|scene| (scene.step.number, scene.step.name)).collect();
        let names = [
            "preflight",
            "seed",
            "rotate",
            "converge",
            "prove both",
            "restart",
            "migrate",
            "retire",
            "outage",
            "report",
        ];
        assert_eq!(all, (1..).zip(names).collect::<Vec<_>>());
        assert!(SCRIPT.iter().all(|scene| !scene.step.claims.is_empty()));
    }
}
