//! Reads typed values out of a merged tree of settings, so that every complaint is one line that names the key, the value,
//! where it came from and what is allowed. (serde's own messages name types, not what an operator may write.)

use super::quantity::{exact_bytes, parse_bytes, parse_span, show_span};
use crate::error::{Error, Result};
use config::{Value, ValueKind};
use std::collections::HashMap;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::{Component, PathBuf};
use std::time::Duration;

/// One table of the settings: the root, `[log]`, or one `[[tier]]`.
pub(super) struct Section {
    /// Dotted prefix for messages, empty for the root: `log.`, `tier[1].`.
    prefix: String,
    values: HashMap<String, Value>,
}

impl Section {
    pub(super) fn root(values: HashMap<String, Value>) -> Section {
        Section { prefix: String::new(), values }
    }

    /// Takes a sub-table; absent is empty.
    pub(super) fn section(&mut self, name: &str) -> Result<Section> {
        let prefix = format!("{}{name}.", self.prefix);
        match self.values.remove(name) {
            None => Ok(Section { prefix, values: HashMap::new() }),
            Some(Value { kind: ValueKind::Table(values), .. }) => Ok(Section { prefix, values }),
            Some(other) => Err(self.wrong(name, &other, format!("it is a table: write [{}{name}]", self.prefix))),
        }
    }

    /// Takes an array of tables; absent is empty.
    pub(super) fn sections(&mut self, name: &str) -> Result<Vec<Section>> {
        let allowed = format!("it is a list of tables in the file: write [[{name}]] for each");
        let array = match self.values.remove(name) {
            None => return Ok(Vec::new()),
            Some(Value { kind: ValueKind::Array(array), .. }) => array,
            Some(other) => return Err(self.wrong(name, &other, allowed)),
        };
        let mut sections = Vec::with_capacity(array.len());
        for (index, value) in array.into_iter().enumerate() {
            match value.kind {
                ValueKind::Table(values) => {
                    sections.push(Section { prefix: format!("{}{name}[{index}].", self.prefix), values });
                }
                _ => return Err(self.wrong(name, &value, allowed)),
            }
        }
        Ok(sections)
    }

    /// The names present, for the check against the known ones.
    pub(super) fn names(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.values.iter()
    }

    fn take(&mut self, key: &str) -> Option<Value> {
        self.values.remove(key).filter(|value| !matches!(value.kind, ValueKind::Nil))
    }

    /// The error for a value that is not allowed.
    pub(super) fn wrong(&self, key: &str, value: &Value, allowed: impl Display) -> Error {
        let origin = value.origin().unwrap_or("settings");
        Error::Invalid(format!("{origin}: {}{key} = {}: {allowed}", self.prefix, show(value)))
    }

    pub(super) fn text(&mut self, key: &str) -> Result<Option<String>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value { kind: ValueKind::String(text), .. }) => Ok(Some(text)),
            Some(other) => Err(self.wrong(key, &other, "a text in quotes is wanted")),
        }
    }

    /// A text that no message repeats.
    pub(super) fn secret(&mut self, key: &str) -> Result<Option<String>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value { kind: ValueKind::String(text), .. }) => Ok(Some(text)),
            Some(other) => {
                let origin = other.origin().unwrap_or("settings");
                Err(Error::Invalid(format!("{origin}: {}{key}: a text in quotes is wanted", self.prefix)))
            }
        }
    }

    /// A text that becomes part of file and unit names.
    pub(super) fn name(&mut self, key: &str) -> Result<Option<String>> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        let well_formed = text.len() <= 48
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        if well_formed {
            return Ok(Some(text));
        }
        let allowed = "a name has 1 to 48 letters, digits, `-`, `_` or `.` and starts with a letter or digit";
        Err(self.wrong(key, &Value::new(None, text), allowed))
    }

    /// Of SELinux; an empty text is none.
    pub(super) fn security_context(&mut self, key: &str) -> Result<Option<String>> {
        let Some(text) = self.text(key)?.filter(|text| !text.is_empty()) else { return Ok(None) };
        let plain = |c: char| c.is_ascii_alphanumeric() || "_.-:,".contains(c);
        if text.split(':').filter(|part| !part.is_empty()).count() >= 3 && text.chars().all(plain) {
            return Ok(Some(text));
        }
        let allowed = "an SELinux context such as system_u:object_r:postgresql_db_t:s0 is allowed";
        Err(self.wrong(key, &Value::new(None, text), allowed))
    }

    /// An absolute path without `.` and `..`.
    pub(super) fn path(&mut self, key: &str) -> Result<Option<PathBuf>> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        let path = PathBuf::from(&text);
        let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        if path.is_absolute() && plain && path.parent().is_some() {
            return Ok(Some(path.components().collect()));
        }
        Err(self.wrong(key, &Value::new(None, text), "an absolute path without `..`, and not `/`, is wanted"))
    }

    pub(super) fn bytes(&mut self, key: &str, default: u64, range: RangeInclusive<u64>) -> Result<u64> {
        let allowed =
            format!("a size from {} to {} is allowed", exact_bytes(*range.start()), exact_bytes(*range.end()));
        let Some(value) = self.take(key) else { return Ok(default) };
        let bytes = match &value.kind {
            ValueKind::String(text) => parse_bytes(text).ok(),
            _ => whole_number(&value),
        };
        bytes.filter(|bytes| range.contains(bytes)).ok_or_else(|| self.wrong(key, &value, allowed))
    }

    pub(super) fn span(&mut self, key: &str, default: Duration, range: RangeInclusive<Duration>) -> Result<Duration> {
        let allowed = format!("a span from {} to {} is allowed", show_span(*range.start()), show_span(*range.end()));
        let Some(value) = self.take(key) else { return Ok(default) };
        let span = match &value.kind {
            ValueKind::String(text) => parse_span(text).ok(),
            _ => whole_number(&value).map(Duration::from_secs),
        };
        span.filter(|span| range.contains(span)).ok_or_else(|| self.wrong(key, &value, allowed))
    }

    pub(super) fn count(&mut self, key: &str, default: u64, range: RangeInclusive<u64>) -> Result<u64> {
        let allowed = format!("a whole number from {} to {} is allowed", range.start(), range.end());
        let Some(value) = self.take(key) else { return Ok(default) };
        whole_number(&value).filter(|number| range.contains(number)).ok_or_else(|| self.wrong(key, &value, allowed))
    }

    pub(super) fn number(&mut self, key: &str, default: f32, range: RangeInclusive<f32>) -> Result<f32> {
        let allowed = format!("a number from {} to {} is allowed", range.start(), range.end());
        let Some(value) = self.take(key) else { return Ok(default) };
        // By way of text, which is how it was written: 0.9 stays 0.9.
        let number = match &value.kind {
            ValueKind::Float(_) | ValueKind::I64(_) => value.to_string().parse::<f32>().ok(),
            _ => None,
        };
        number.filter(|number| range.contains(number)).ok_or_else(|| self.wrong(key, &value, allowed))
    }

    pub(super) fn flag(&mut self, key: &str, default: bool) -> Result<bool> {
        match self.take(key) {
            None => Ok(default),
            Some(Value { kind: ValueKind::Boolean(flag), .. }) => Ok(flag),
            Some(other) => Err(self.wrong(key, &other, "true or false is allowed")),
        }
    }

    /// A list of texts; one text with commas is accepted too, since the environment has no lists.
    pub(super) fn texts(&mut self, key: &str) -> Result<Vec<String>> {
        let allowed = "a list of texts is wanted, such as [\"*.log\"]";
        let Some(value) = self.take(key) else { return Ok(Vec::new()) };
        match &value.kind {
            ValueKind::String(text) => {
                Ok(text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect())
            }
            ValueKind::Array(parts) => parts
                .iter()
                .map(|part| match &part.kind {
                    ValueKind::String(text) if !text.is_empty() => Ok(text.clone()),
                    _ => Err(self.wrong(key, &value, allowed)),
                })
                .collect(),
            _ => Err(self.wrong(key, &value, allowed)),
        }
    }

    /// The raw value, for keys with a grammar of their own.
    pub(super) fn raw(&mut self, key: &str) -> Option<Value> {
        self.take(key)
    }
}

fn whole_number(value: &Value) -> Option<u64> {
    match value.kind {
        ValueKind::I64(number) => u64::try_from(number).ok(),
        ValueKind::U64(number) => Some(number),
        ValueKind::I128(number) => u64::try_from(number).ok(),
        ValueKind::U128(number) => u64::try_from(number).ok(),
        _ => None,
    }
}

/// The value as the operator wrote it, shortened.
fn show(value: &Value) -> String {
    let text = match &value.kind {
        ValueKind::String(text) => format!("{text:?}"),
        ValueKind::Table(_) => "{...}".to_owned(),
        ValueKind::Array(_) => "[...]".to_owned(),
        _ => value.to_string(),
    };
    match text.char_indices().nth(80) {
        Some((cut, _)) => format!("{}...", &text[..cut]),
        None => text,
    }
}
