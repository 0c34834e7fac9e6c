//! The settings' rules about paths: `[[rule]]`, and the profiles.

use super::reader::Section;
use super::settings::{refuse_unknown, required};
use crate::error::{Error, Result};
use crate::policy::profiles::Profile;
use crate::policy::rules::{Rule, Rules};
use crate::units::TierId;
use config::{Value, ValueKind};

/// The rules in their order. Refuses those that cannot all hold, by name.
pub(super) fn read_rules(
    root: &mut Section,
    tier_names: &[String],
    profiles: &[Profile],
    origin: &str,
) -> Result<Vec<Rule>> {
    let mut rules = Vec::new();
    for (index, mut section) in root.sections("rule")?.into_iter().enumerate() {
        refuse_unknown(&section, "rule.")?;
        let path = required(origin, &format!("rule[{index}].path"), section.text("path")?)?;
        let tier = |section: &Section, key: &str, name: String| {
            let found = (0u8..).zip(tier_names).find(|(_, known)| **known == name).map(|(at, _)| TierId(at));
            let allowed = || format!("there is no such tier; the tiers are {}", tier_names.join(", "));
            found.ok_or_else(|| section.wrong(key, &Value::new(None, name), allowed()))
        };
        let pin = match section.text("pin")? {
            Some(name) => Some(tier(&section, "pin", name)?),
            None => None,
        };
        let never = section.texts("never")?;
        let never = never.into_iter().map(|name| tier(&section, "never", name)).collect::<Result<Vec<TierId>>>()?;
        let promote = match section.raw("promote") {
            None => true,
            Some(Value { kind: ValueKind::Boolean(promote), .. }) => promote,
            Some(other) => return Err(section.wrong("promote", &other, "true or false is allowed")),
        };
        if path.is_empty() || (pin.is_none() && never.is_empty() && promote) {
            let allowed = "it says nothing: a path, and one of pin, never and promote = false are wanted";
            return Err(Error::Invalid(format!("{origin}: rule[{index}] (path \"{path}\"): {allowed}")));
        }
        rules.push(Rule { path, pin, never, promote });
    }
    Rules::new(rules.clone(), profiles.to_vec(), tier_names.to_vec())
        .map_err(|why| Error::Invalid(format!("{origin}: {why}")))?;
    Ok(rules)
}

/// Which databases' files are recognised; all, if nothing is said.
pub(super) fn read_profiles(placement: &mut Section) -> Result<Vec<Profile>> {
    let Some(value) = placement.raw("profiles") else { return Ok(Profile::ALL.to_vec()) };
    let names: Option<Vec<String>> = match &value.kind {
        ValueKind::Array(parts) => parts.iter().map(|part| part.clone().into_string().ok()).collect(),
        ValueKind::String(text) => {
            Some(text.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect())
        }
        _ => None,
    };
    let profile = |name: String| Profile::ALL.into_iter().find(|profile| profile.name() == name);
    let profiles = names.and_then(|names| names.into_iter().map(profile).collect::<Option<Vec<Profile>>>());
    let allowed = "a list of \"postgresql\", \"mariadb\" and \"sqlite\" is allowed";
    profiles.ok_or_else(|| placement.wrong("profiles", &value, allowed))
}

#[cfg(test)]
mod tests {
    use crate::daemon::settings::Settings;
    use crate::policy::profiles::Profile;
    use crate::units::TierId;

    const LEAST: &str = "name = \"v\"\nmount = \"/nowhere/m\"\n[[tier]]\nname = \"nvme\"\npath = \"/nowhere/n\"\n\
                         [[tier]]\nname = \"hdd\"\npath = \"/nowhere/h\"\n";

    #[test]
    fn rules_are_read() {
        let text = format!(
            "{LEAST}[[rule]]\npath = \"base/5/\"\npin = \"hdd\"\n[[rule]]\npath = \"archive/\"\nnever = [\"nvme\"]\npromote = false"
        );
        let settings = Settings::parse(&text, &[]).expect("accepted");
        assert_eq!((settings.rules.len(), settings.rules[0].pin), (2, Some(TierId(1))));
        assert_eq!((settings.rules[1].never.as_slice(), settings.rules[1].promote), (&[TierId(0)][..], false));
        assert_eq!(settings.placement.profiles, Profile::ALL);
        let env = [("HEATFS__PLACEMENT__PROFILES", "sqlite")];
        assert_eq!(Settings::parse(LEAST, &env).expect("accepted").placement.profiles, [Profile::Sqlite]);
    }

    #[test]
    fn rules_that_say_nothing_or_too_much_are_named() {
        for (rules, wanted) in [
            ("[[rule]]\npath = \"x\"\npin = \"tape\"", &["rule[0].pin", "tape", "nvme, hdd"][..]),
            ("[[rule]]\npath = \"x\"\nnever = [\"tape\"]", &["rule[0].never", "tape"]),
            ("[[rule]]\npath = \"x\"\npromote = 1", &["rule[0].promote", "true or false"]),
            ("[[rule]]\npath = \"x\"", &["rule[0]", "says nothing"]),
            ("[[rule]]\npin = \"hdd\"", &["rule[0].path", "not set"]),
            ("[[rule]]\npath = \"x\"\npinn = \"hdd\"", &["`rule.pinn`", "`rule.pin`"]),
            (
                "[[rule]]\npath = \"base/\"\npin = \"hdd\"\n[[rule]]\npath = \"base/5/*\"\nnever = [\"hdd\"]",
                &["rule[0] (path \"base/\"", "rule[1] (path \"base/5/*\"", "cannot be kept on hdd and off it"],
            ),
            ("[placement]\nprofiles = [\"oracle\"]", &["placement.profiles", "postgresql"]),
        ] {
            let line = Settings::parse(&format!("{LEAST}{rules}"), &[]).expect_err(rules).to_string();
            assert!(wanted.iter().all(|part| line.contains(part)) && line.lines().count() == 1, "{line}");
        }
    }
}
