//! Which RPC comes next: shares, spread evenly and the same in every run.

use kms_v2_client::plugin::Rpc;
use std::fmt;
use std::str::FromStr;

/// Shares of the RPCs; at least one is not zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mix {
    status: u16,
    encrypt: u16,
    decrypt: u16,
}

impl Mix {
    /// Of this RPC.
    #[must_use]
    pub(crate) const fn share(&self, rpc: Rpc) -> u16 {
        match rpc {
            Rpc::Status => self.status,
            Rpc::Encrypt => self.encrypt,
            Rpc::Decrypt => self.decrypt,
        }
    }

    pub(super) const fn wheel(self) -> Wheel {
        Wheel { mix: self, credit: [0; 3] }
    }
}

impl FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut mix = Self { status: 0, encrypt: 0, decrypt: 0 };
        for part in text.split(',') {
            let (name, share) = part.split_once('=').ok_or_else(|| format!("{part:?} is not RPC=SHARE"))?;
            let share = share.trim().parse().map_err(|_| format!("{share:?} is not a number from 0 to 65535"))?;
            match name.trim() {
                "status" => mix.status = share,
                "encrypt" => mix.encrypt = share,
                "decrypt" => mix.decrypt = share,
                other => return Err(format!("{other:?} is none of status, encrypt, decrypt")),
            }
        }
        if mix == (Self { status: 0, encrypt: 0, decrypt: 0 }) {
            return Err("one share must be more than 0".to_owned());
        }
        Ok(mix)
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "encrypt={},decrypt={},status={}", self.encrypt, self.decrypt, self.status)
    }
}

/// Deals out RPCs so that after any number of calls each has had its share, give or take one.
#[derive(Clone, Debug)]
pub(super) struct Wheel {
    mix: Mix,
    credit: [i64; 3],
}

impl Wheel {
    pub(super) fn next(&mut self) -> Rpc {
        let all = [Rpc::Encrypt, Rpc::Decrypt, Rpc::Status];
        let mut total = 0_i64;
        let mut best: Option<(Rpc, &mut i64)> = None;
        for (rpc, credit) in all.into_iter().zip(&mut self.credit) {
            let share = i64::from(self.mix.share(rpc));
            total = total.saturating_add(share);
            *credit = credit.saturating_add(share);
            if share > 0 && best.as_ref().is_none_or(|(_, most)| **most < *credit) {
                best = Some((rpc, credit));
            }
        }
        best.map_or(Rpc::Encrypt, |(rpc, credit)| {
            *credit = credit.saturating_sub(total);
            rpc
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_prefix_of_the_calls_has_the_shares() {
        let mix: Mix = "encrypt=80,decrypt=15,status=5".parse().unwrap();
        let mut wheel = mix.wheel();
        let mut counts = [0_i64; 3];
        for n in 1..=1000_i64 {
            counts[wheel.next() as usize] += 1;
            for (rpc, share) in [(Rpc::Encrypt, 80), (Rpc::Decrypt, 15), (Rpc::Status, 5)] {
                let exact = n * share / 100;
                assert!((counts[rpc as usize] - exact).abs() <= 1, "{rpc} after {n}: {counts:?}");
            }
        }
        assert_eq!(counts, [50, 800, 150]);
    }

    #[test]
    fn a_share_of_nothing_never_comes_and_bad_words_are_named() {
        let mut wheel = "status=3".parse::<Mix>().unwrap().wheel();
        assert!((0..10).all(|_| wheel.next() == Rpc::Status));
        for (text, says) in [
            ("encrypt", "not RPC=SHARE"),
            ("seal=1", "none of"),
            ("encrypt=x", "not a number"),
            ("encrypt=0", "more than 0"),
        ] {
            assert!(text.parse::<Mix>().unwrap_err().contains(says), "{text}");
        }
    }
}
