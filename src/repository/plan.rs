//! The plan of a prune: `gc/<generation>-plan`, JSON that people can read, with a last line that is the BLAKE3 of what stands before it.

use super::generations::{self, Generations};
use super::ids::{Generation, PackId};
use super::small::{Kind, SmallObjects, create_file, read_file};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What is to become of the packs, and why.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Plan {
    pub generation: u32,
    /// Snapshots that count, as the prune saw them.
    pub snapshots: Vec<String>,
    /// Packs to be deleted, with the reason.
    pub condemned: BTreeMap<String, Condemned>,
    pub packs_kept: u64,
    pub bytes_kept: u64,
    /// Bytes that will be free when all is done: sizes of condemned packs less what is written anew.
    pub bytes_freed: u64,
    /// Bytes of live objects that are written anew.
    pub bytes_rewritten: u64,
    /// Objects that snapshots refer to and that are nowhere: damage, which prune leaves as it is.
    pub objects_missing: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Condemned {
    pub reason: Reason,
    pub bytes: u64,
    /// Raw bytes of its objects that are in use; they are written anew.
    pub live_bytes: u64,
    pub raw_bytes: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// No snapshot uses anything in it.
    Unused,
    /// It was never finished.
    Unfinished,
    /// Less than the threshold of it is in use.
    Sparse,
    /// It is one of many small packs.
    Small,
}

const HASH_CHARS: usize = 64;

impl Plan {
    pub fn condemns(&self, pack: PackId) -> bool {
        self.condemned.contains_key(&pack.to_string())
    }

    pub fn packs(&self) -> impl Iterator<Item = (PackId, &Condemned)> {
        self.condemned.iter().filter_map(|(name, condemned)| Some((name.parse().ok()?, condemned)))
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>> {
        let wrong = |e: serde_json::Error| Error::Invalid(format!("cannot write the plan of a prune: {e}"));
        let mut text = serde_json::to_string_pretty(self).map_err(wrong)?;
        text.push('\n');
        let hash = blake3::hash(text.as_bytes()).to_hex();
        text.push_str(&hash);
        text.push('\n');
        Ok(text.into_bytes())
    }

    pub(super) fn decode(bytes: &[u8], path: &str) -> Result<Plan> {
        let corrupt = |why: String| Error::Corrupt { what: "plan of a prune", path: path.to_owned(), offset: 0, why };
        let at = bytes.len().checked_sub(HASH_CHARS + 1).ok_or_else(|| corrupt("ends too early".to_owned()))?;
        let (text, hash) = bytes.split_at(at);
        let expected = format!("{}\n", blake3::hash(text).to_hex());
        if hash != expected.as_bytes() {
            return Err(corrupt("checksum mismatch".to_owned()));
        }
        serde_json::from_slice(text).map_err(|e| corrupt(e.to_string()))
    }
}

/// The plan of a generation; None when there is none.
pub fn read(small: &SmallObjects, generation: Generation) -> Result<Option<Plan>> {
    let path = generations::path(generation, "plan");
    match read_file(small.device.as_ref(), &path)? {
        Some(bytes) => Plan::decode(&bytes, &format!("{}/{path}", small.device.path())).map(Some),
        None => Ok(None),
    }
}

/// Creates the plan, or finds that there is one, which then is the one.
pub fn create(small: &SmallObjects, generation: Generation, plan: &Plan) -> Result<Plan> {
    let path = generations::path(generation, "plan");
    create_file(small.device.as_ref(), &path, generation, &plan.encode()?)?;
    let missing = || Error::Overtaken(format!("{path} is gone: another prune came further"));
    read(small, generation)?.ok_or_else(missing)
}

/// One of these packs that is condemned or gone already; None when all will stay.
pub fn condemned_of(small: &SmallObjects, packs: &[PackId]) -> Result<Option<PackId>> {
    let device = small.device.as_ref();
    let (open_plan, last_final) = loop {
        let planned = Generations::load(device)?.planned.last().copied();
        let last_final: Option<generations::Final> = generations::last_final(small)?;
        let resolved = last_final.as_ref().map(|last| last.generation);
        match planned {
            Some(planned) if resolved.is_none_or(|resolved| resolved < planned) => {
                // One that is cleared away meanwhile was resolved: then look again.
                if let Some(plan) = read(small, planned)? {
                    break (Some(plan), last_final);
                }
            }
            _ => break (None, last_final),
        }
    };
    for pack in packs {
        let deleted = last_final.as_ref().is_some_and(|last| last.delete.contains(pack));
        let planned = open_plan.as_ref().is_some_and(|plan| plan.condemns(*pack));
        let path = pack.path();
        let gone = !device.exists(&path).map_err(|e| super::small::io_error(device, "look for", &path, e))?;
        if deleted || planned || gone {
            return Ok(Some(*pack));
        }
    }
    Ok(None)
}

/// The final list of a generation; None when there is none.
pub fn final_of(small: &SmallObjects, generation: Generation) -> Result<Option<generations::Final>> {
    small.read(Kind::Final, &generations::path(generation, "final"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_text_that_reads_back_and_shows_damage() {
        let condemned = Condemned { reason: Reason::Sparse, bytes: 9, live_bytes: 1, raw_bytes: 8 };
        let plan = Plan { generation: 3, condemned: [(PackId(7).to_string(), condemned)].into(), ..Plan::default() };
        let bytes = plan.encode().expect("encoded");
        assert_eq!(Plan::decode(&bytes, "p").expect("decodes"), plan);
        assert!(plan.condemns(PackId(7)) && !plan.condemns(PackId(8)));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Plan::decode(&bad, "p").is_err(), "bit {bit}");
        }
    }
}
