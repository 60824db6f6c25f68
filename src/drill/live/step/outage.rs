//! Step 9: not for a cluster.

use crate::claim::{Sheet, Step};
use crate::live::world::Live;
use crate::script::Playing;

pub(crate) static STEP: Step = Step {
    number: 9,
    name: "outage",
    passes_when: "an outage of the KMS stops no write for the whole grace",
    claims: &["the API servers write on while the KMS cannot be reached"],
};

pub(crate) fn play<'a>(_: &'a mut Live, sheet: &'a mut Sheet) -> Playing<'a> {
    sheet.not_tried(1, "nobody takes the KMS away from a cluster; `kmsctl drill rehearse` does, in its sandbox");
    Box::pin(async { Ok(()) })
}
