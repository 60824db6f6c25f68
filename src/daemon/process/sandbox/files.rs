//! Files and TCP ports, by landlock.
//!
//! Guarantees: nothing of the process can open, make, remove or run anything outside of [`Need`], connect to or listen on another
//! TCP port (kernels from 6.7), or signal another process (from 6.12). What is open already stays open. Refuses to know:
//! unix sockets and UDP, which the kernel's landlock does not hold. SPEC: landlock(7).

use super::need::Need;
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus, NetPort, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, make_bitflags, path_beneath_rules,
};
use std::io;

/// The newest kernel interface whose every right we have thought about.
const KNOWN: ABI = ABI::V6;

pub(super) fn confine(need: &Need) -> io::Result<String> {
    let status = restrict(need).map_err(io::Error::other)?;
    let abi = match status.landlock {
        LandlockStatus::NotImplemented => return Err(io::Error::other("this kernel was built without landlock")),
        LandlockStatus::NotEnabled => return Err(io::Error::other("landlock is not enabled (kernel parameter lsm=)")),
        LandlockStatus::Available { effective_abi, .. } => effective_abi,
    };
    match status.ruleset {
        RulesetStatus::NotEnforced => Err(io::Error::other("the kernel did not take the rules")),
        RulesetStatus::PartiallyEnforced if abi < ABI::V4 => {
            Ok(format!("files only: landlock {abi:?} has no rules for ports"))
        }
        _ => Ok(format!(
            "{} places to read, {} to write, {} ports",
            need.read.len(),
            need.write.len(),
            need.connect.len()
        )),
    }
}

fn restrict(need: &Need) -> Result<landlock::RestrictionStatus, RulesetError> {
    let read: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | ReadDir});
    let write = read | make_bitflags!(AccessFs::{WriteFile | Truncate | RemoveFile | MakeReg | MakeSock});
    let remake = write | make_bitflags!(AccessFs::{MakeDir});
    let connect = |port: &u16| Ok::<_, RulesetError>(NetPort::new(*port, AccessNet::ConnectTcp));
    let bind = |port: &u16| Ok::<_, RulesetError>(NetPort::new(*port, AccessNet::BindTcp));
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(KNOWN))?
        .handle_access(AccessNet::from_all(KNOWN))?
        .scope(Scope::Signal)?
        .create()?
        .add_rules(path_beneath_rules(&need.read, read))?
        .add_rules(path_beneath_rules(&need.write, write))?
        .add_rules(path_beneath_rules(&need.remake, remake))?
        .add_rules(need.connect.iter().map(connect))?
        .add_rules(need.bind.iter().map(bind))?
        .restrict_self()
}
