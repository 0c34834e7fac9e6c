//! Rules of the settings: what an operator says about paths, before heat is asked.
//!
//! Several rules may speak of one file as long as all can hold. Two that cannot are refused when the settings are read, even if no file
//! meets both yet, so that there is never a question of which one wins. What is said by hand (`heatfs pin`) yields to a
//! rule, and a profile's opinion yields to both.

use super::glob::Pattern;
use super::placement::{Bounds, Pin};
use super::profiles::{Kind, Profile};
use crate::units::TierId;
use std::fmt;

/// What one rule says about the paths that it matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// As the settings have it.
    pub path: String,
    /// Keep on this tier.
    pub pin: Option<TierId>,
    /// Keep off these tiers.
    pub never: Vec<TierId>,
    /// May heat bring blocks up?
    pub promote: bool,
}

/// Who decides about a file, where it is not heat alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authority {
    /// Rules of the settings, by their place there.
    Rules(Vec<usize>),
    Profile(Profile, Kind),
}

/// What holds for one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    pub pin: Pin,
    pub authority: Authority,
}

#[derive(Clone, Debug, Default)]
pub struct Rules {
    rules: Vec<(Rule, Pattern)>,
    profiles: Vec<Profile>,
    tier_names: Vec<String>,
}

impl Rules {
    /// The error is one line that names two rules that cannot both hold, or one that leaves no tier.
    pub fn new(rules: Vec<Rule>, profiles: Vec<Profile>, tier_names: Vec<String>) -> Result<Rules, String> {
        let rules =
            rules.into_iter().map(|rule| (Pattern::new(&rule.path), rule)).map(|(pattern, rule)| (rule, pattern));
        let rules = Rules { rules: rules.collect(), profiles, tier_names };
        for (index, (rule, pattern)) in rules.rules.iter().enumerate() {
            if let Some(why) = rules.conflict(&[rule]) {
                return Err(format!("{}: {why}", rules.name(index)));
            }
            for (earlier, (other, other_pattern)) in rules.rules.iter().enumerate().take(index) {
                if pattern.overlaps(other_pattern)
                    && let Some(why) = rules.conflict(&[other, rule])
                {
                    let (one, two) = (rules.name(earlier), rules.name(index));
                    return Err(format!("{one} and {two} can match the same file, and {why}"));
                }
            }
        }
        Ok(rules)
    }

    /// Why these cannot all hold for one file.
    fn conflict(&self, rules: &[&Rule]) -> Option<String> {
        let mut pins = rules.iter().filter_map(|rule| rule.pin);
        let never = bits(rules);
        let name = |tier: TierId| self.tier_name(tier);
        if let Some(pin) = pins.next() {
            if let Some(other) = pins.find(|other| *other != pin) {
                return Some(format!("a file is kept on {} or on {}, not on both", name(pin), name(other)));
            }
            if never & bit(pin) != 0 {
                return Some(format!("a file cannot be kept on {} and off it", name(pin)));
            }
            if rules.iter().any(|rule| !rule.promote) {
                return Some(format!("a file cannot be kept on {} and excluded from promotion", name(pin)));
            }
        }
        let everywhere = self.tier_ids().all(|tier| never & bit(tier) != 0);
        everywhere.then(|| "no tier is left for it".to_owned())
    }

    /// What holds for the file at `path`; None: heat alone.
    pub fn judge(&self, path: &str) -> Option<Judgement> {
        let matching: Vec<usize> =
            self.rules.iter().enumerate().filter(|(_, (_, pattern))| pattern.matches(path)).map(|(at, _)| at).collect();
        if !matching.is_empty() {
            let rules: Vec<&Rule> =
                matching.iter().filter_map(|at| self.rules.get(*at)).map(|(rule, _)| rule).collect();
            let pin = match rules.iter().find_map(|rule| rule.pin) {
                Some(tier) => Pin::To(tier),
                None => Pin::Within(Bounds {
                    never: bits(&rules),
                    promoted: rules.iter().all(|rule| rule.promote),
                    demoted: true,
                }),
            };
            return Some(Judgement { pin, authority: Authority::Rules(matching) });
        }
        self.profiles.iter().find_map(|profile| {
            let kind = profile.kind_of(path)?;
            let pin = match kind {
                Kind::Log => Pin::LogFile,
                Kind::Catalog => Pin::Catalog,
                Kind::Temporary => Pin::Within(Bounds { demoted: false, ..Bounds::default() }),
            };
            Some(Judgement { pin, authority: Authority::Profile(*profile, kind) })
        })
    }

    /// In words, for `explain`.
    pub fn describe(&self, authority: &Authority) -> String {
        match authority {
            Authority::Rules(rules) => rules.iter().map(|at| self.name(*at)).collect::<Vec<_>>().join(" and "),
            Authority::Profile(profile, kind) => format!("{} profile: {kind}", profile.name()),
        }
    }

    /// As messages call it: `rule[0] (path "base/5/", pin "hdd")`.
    fn name(&self, index: usize) -> String {
        let Some((rule, _)) = self.rules.get(index) else { return format!("rule[{index}]") };
        let quoted = |tier: &TierId| format!("\"{}\"", self.tier_name(*tier));
        let mut text = format!("rule[{index}] (path \"{}\"", rule.path);
        if let Some(tier) = &rule.pin {
            text += &format!(", pin {}", quoted(tier));
        }
        if !rule.never.is_empty() {
            text += &format!(", never {}", rule.never.iter().map(quoted).collect::<Vec<_>>().join(", "));
        }
        if !rule.promote {
            text += ", promote false";
        }
        text + ")"
    }

    fn tier_name(&self, tier: TierId) -> String {
        self.tier_names.get(tier.index()).cloned().unwrap_or_else(|| tier.to_string())
    }

    fn tier_ids(&self) -> impl Iterator<Item = TierId> {
        (0u8..).map(TierId).take(self.tier_names.len().max(1))
    }
}

fn bit(tier: TierId) -> u16 {
    1u16.checked_shl(u32::from(tier.0)).unwrap_or(0)
}

fn bits(rules: &[&Rule]) -> u16 {
    rules.iter().flat_map(|rule| &rule.never).fold(0, |bits, tier| bits | bit(*tier))
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::{Authority, Bounds, Kind, Pin, Profile, Rule, Rules};
    use crate::units::TierId;

    fn rule(path: &str) -> Rule {
        Rule { path: path.to_owned(), pin: None, never: Vec::new(), promote: true }
    }

    fn pinned(path: &str, tier: u8) -> Rule {
        Rule { pin: Some(TierId(tier)), ..rule(path) }
    }

    fn off(path: &str, tiers: &[u8]) -> Rule {
        Rule { never: tiers.iter().copied().map(TierId).collect(), ..rule(path) }
    }

    fn rules(rules: Vec<Rule>) -> Result<Rules, String> {
        Rules::new(rules, Profile::ALL.to_vec(), ["nvme", "sata", "hdd"].map(str::to_owned).to_vec())
    }

    #[test]
    fn rules_that_cannot_both_hold_are_refused_by_name() {
        let excluded = |path: &str| Rule { promote: false, ..rule(path) };
        for (one, other, wanted) in [
            (pinned("base/5/", 0), pinned("base/*/1259", 2), "kept on nvme or on hdd"),
            (pinned("base/5/", 0), off("base/", &[0]), "kept on nvme and off it"),
            (pinned("base/5/", 0), excluded("*"), "excluded from promotion"),
            (off("a*", &[0, 1]), off("*b", &[2]), "no tier is left"),
        ] {
            let line = rules(vec![rule("x/"), one.clone(), other.clone()]).expect_err("refused");
            assert!(
                line.contains("rule[1] (path") && line.contains("rule[2] (path") && line.contains(wanted),
                "{line}"
            );
            assert!(line.contains(&one.path) && line.contains(&other.path), "{line}");
        }
        let line = rules(vec![off("a", &[0, 1, 2])]).expect_err("refused");
        assert!(line.starts_with("rule[0]") && line.contains("no tier"), "{line}");
        rules(vec![pinned("base/5/", 0), pinned("base/6/", 2), off("base/5/*", &[2]), excluded("base/7/")])
            .expect("these can all hold");
    }

    #[test]
    fn a_rule_comes_before_a_profile() {
        let rules = rules(vec![off("base/5/", &[0]), off("base/**", &[1]), pinned("*.arc", 2)]).expect("sound");
        let found = rules.judge("base/5/1259").expect("judged");
        assert_eq!(found.pin, Pin::Within(Bounds { never: 0b011, promoted: true, demoted: true }));
        assert_eq!(found.authority, Authority::Rules(vec![0, 1]));
        assert!(rules.describe(&found.authority).contains("never \"nvme\""));
        assert_eq!(rules.judge("x/y.arc").map(|found| found.pin), Some(Pin::To(TierId(2))));
        let catalog = rules.judge("global/1262").expect("judged");
        assert_eq!(catalog.authority, Authority::Profile(Profile::PostgreSql, Kind::Catalog));
        assert_eq!((catalog.pin, rules.judge("notes.txt")), (Pin::Catalog, None));
    }
}
