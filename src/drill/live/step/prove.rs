//! Step 5: both keys work at once.

use crate::claim::{Sheet, Step};
use crate::live::objects;
use crate::live::state::Made;
use crate::live::step::none;
use crate::live::world::Live;
use crate::script::Playing;
use kms_v2_api::v2::EncryptResponse;
use kube_kms_etcd::value::Value;

pub(crate) static STEP: Step = Step {
    number: 5,
    name: "prove both",
    passes_when: "new objects are under the new key, and every old one still opens",
    claims: &[
        "what is written now is under the new key",
        "every old object reads back through every API server",
        "every plugin that is reached directly unwraps what is old and what is new",
    ],
};

pub(crate) fn play<'a>(w: &'a mut Live, sheet: &'a mut Sheet) -> Playing<'a> {
    Box::pin(run(w, sheet))
}

async fn run(w: &mut Live, sheet: &mut Sheet) -> Result<(), String> {
    let (_, new) = w.keys()?;
    if w.state.objects.is_empty() {
        for claim in 1..=STEP.claims.len() {
            sheet.not_tried(claim, "the drill has no objects of its own (step 2)");
        }
        return Ok(());
    }
    if !w.state.converged {
        return Err("not everybody has moved (step 4)".to_owned());
    }
    let server = w.servers.first().ok_or_else(|| "there is no API server".to_owned())?;
    let resource = server.resolve(&w.plan.objects_of).await?;
    let mut failed = Vec::new();
    for n in 0..w.servers.len() {
        if let Err(why) = objects::write(w, &resource, n, true).await {
            failed.push(why);
        }
    }
    let all = w.state.objects.clone();
    for made in all.iter().filter(|made| made.is_new) {
        match w.key_id_of(made).await {
            Ok(key_id) if new.is(&key_id) => {}
            Ok(key_id) => failed.push(format!("{} is under {key_id}", made.path)),
            Err(why) => failed.push(why),
        }
    }
    sheet.judge(1, none(&failed, format!("under {new}, through {} API servers", w.servers.len())));
    let failed = objects::read_all(w).await;
    sheet.judge(2, none(&failed, format!("{} objects, through {} API servers", all.len(), w.servers.len())));
    if w.plan.sockets.is_empty() {
        sheet.not_tried(3, "no --socket was given");
        return Ok(());
    }
    let failed = unwrap_both(w, &all).await;
    sheet.judge(3, none(&failed, format!("{} plugins", w.plan.sockets.len())));
    Ok(())
}

/// One old and one new DEK source through every plugin. SECURITY: what comes back is the seed of live objects; it is dropped
/// where it arrives.
async fn unwrap_both(w: &mut Live, all: &[Made]) -> Vec<String> {
    let mut failed = Vec::new();
    let (old, new) = (all.iter().find(|made| !made.is_new), all.iter().rfind(|made| made.is_new));
    let names: Vec<String> = w.plan.sockets.iter().map(|(name, _)| name.clone()).collect();
    for made in [old, new].into_iter().flatten() {
        let sealed = match wrapped(w, made).await {
            Ok(sealed) => sealed,
            Err(why) => {
                failed.push(why);
                continue;
            }
        };
        for name in &names {
            let uid = uuid::Uuid::new_v4().to_string();
            match w.plugin(name).await {
                Ok(mut plugin) => {
                    if let Err(status) = plugin.decrypt(sealed.clone(), uid).await {
                        failed.push(format!("{name}: {:?} {}", status.code(), status.message()));
                    }
                }
                Err(why) => failed.push(why),
            }
        }
    }
    failed
}

/// What kube-apiserver would send to Decrypt for this object.
async fn wrapped(w: &mut Live, made: &Made) -> Result<EncryptResponse, String> {
    for key in &made.keys {
        let found = w.etcd.one(key.as_bytes()).await.map_err(|error| error.to_string())?;
        let Some((value, _)) = found else { continue };
        let Value::KmsV2(object) = Value::parse(&value) else { return Err(format!("{key} is not under KMS v2")) };
        return Ok(EncryptResponse {
            ciphertext: object.dek_source.to_vec(),
            key_id: object.key_id.to_owned(),
            annotations: object.annotations.iter().map(|(n, v)| ((*n).to_owned(), v.to_vec())).collect(),
        });
    }
    Err(format!("etcd has none of {}", made.keys.join(", ")))
}
