//! The kinds of fields that a record has. See [`super`] for the rule that they share.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

use super::{FieldError, Parser, PayloadError};
use crate::exec::cmd::Secret;

/// A field of a record: knows how to take its element.
pub(crate) trait Field: Sized {
    /// The field before any element was met; `path` is named in errors.
    fn absent(path: &'static str) -> Self;
    /// Takes one more element of its name, whose start tag has just been read, to its end.
    fn take(&mut self, parser: &mut Parser<'_>, element: &'static str) -> Result<(), PayloadError>;
}

/// A text: that of the first element of its name.
#[derive(Clone, PartialEq, Eq)]
pub struct Text {
    path: Cow<'static, str>,
    /// `None` until an element was met; an empty one holds an empty text.
    text: Option<Box<str>>,
}

impl Text {
    /// The text as it stands, blanks included; `None` when the element is missing or empty.
    #[must_use]
    pub fn get(&self) -> Option<&str> {
        self.text.as_deref().filter(|text| !text.is_empty())
    }

    /// The text without surrounding blanks; `None` when nothing is left.
    #[must_use]
    pub fn trimmed(&self) -> Option<&str> {
        self.get().map(str::trim).filter(|text| !text.is_empty())
    }

    /// The trimmed text, or this where there is none.
    #[must_use]
    pub fn or<'a>(&'a self, default: &'a str) -> &'a str {
        self.trimmed().unwrap_or(default)
    }

    /// The text as it stands.
    ///
    /// # Errors
    /// [`FieldError::Missing`] when the element is missing or empty.
    pub fn required(&self) -> Result<&str, FieldError> {
        self.get().ok_or_else(|| FieldError::Missing { path: self.path.clone().into_owned() })
    }

    /// Whether it is exactly `yes`, `YES`, `true` or `TRUE`: upstream's usual test (contract 01 §9).
    #[must_use]
    pub fn is_yes(&self) -> bool {
        matches!(self.get(), Some("yes" | "YES" | "true" | "TRUE"))
    }

    /// Whether it is `yes` in any case: the test of attributes such as `NFS_AUTO_ENABLE` and `CONVERT` (02 §2, §9).
    #[must_use]
    pub fn is_yes_any_case(&self) -> bool {
        self.trimmed().is_some_and(|text| text.eq_ignore_ascii_case("yes"))
    }

    /// Whether it is exactly `no` or `NO`: the test of `SPARSE` on disks (01 §9).
    #[must_use]
    pub fn is_no(&self) -> bool {
        matches!(self.get(), Some("no" | "NO"))
    }

    /// Whether it is `no` in any case: the test of `SPARSE` on datastores (02 §2).
    #[must_use]
    pub fn is_no_any_case(&self) -> bool {
        self.trimmed().is_some_and(|text| text.eq_ignore_ascii_case("no"))
    }

    /// The words of a list separated by blanks, such as `BRIDGE_LIST` and `SAFE_DIRS`.
    pub fn words(&self) -> impl Iterator<Item = &str> {
        self.get().unwrap_or_default().split_whitespace()
    }

    /// The items of a list separated by commas, such as `DISK_IDS` and `CHILDREN`, trimmed, empty ones left out.
    pub fn items(&self) -> impl Iterator<Item = &str> {
        self.get().unwrap_or_default().split(',').map(str::trim).filter(|item| !item.is_empty())
    }

    /// The trimmed text as a value; `None` when there is none.
    ///
    /// # Errors
    /// [`FieldError::Unparsable`], which names the element.
    pub fn parse<T: Value>(&self) -> Result<Option<T>, FieldError> {
        let Some(text) = self.trimmed() else {
            return Ok(None);
        };
        match T::from_text(text) {
            Some(value) => Ok(Some(value)),
            None => Err(FieldError::Unparsable {
                path: self.path.clone().into_owned(),
                text: text.chars().take(64).collect(),
                expected: T::EXPECTED,
            }),
        }
    }
}

/// The text as [`Text::get`] gives it; absent is `None`.
impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

impl Field for Text {
    fn absent(path: &'static str) -> Self {
        Self { path: Cow::Borrowed(path), text: None }
    }

    fn take(&mut self, parser: &mut Parser<'_>, element: &'static str) -> Result<(), PayloadError> {
        if self.text.is_some() {
            return parser.skip(element);
        }
        let text = parser.text(element)?;
        parser.occupy(text.len())?;
        self.text = Some(text.into_boxed_str());
        Ok(())
    }
}

/// A value that is written as text.
pub trait Value: Sized {
    /// What it is, with an article, for errors.
    const EXPECTED: &'static str;
    /// Reads it from a text without surrounding blanks.
    fn from_text(text: &str) -> Option<Self>;
}

macro_rules! numbers {
    ($($type:ty, $expected:literal;)*) => {$(
        impl Value for $type {
            const EXPECTED: &'static str = $expected;
            fn from_text(text: &str) -> Option<Self> {
                text.parse().ok()
            }
        }
    )*};
}

numbers! {
    u32, "a whole number from 0 to 4294967295";
    u64, "a whole number from 0";
    i32, "a whole number";
    i64, "a whole number";
}

/// A value other than text, written in the first element of its name.
#[derive(Clone, PartialEq, Eq)]
pub struct First<T> {
    text: Text,
    value: PhantomData<fn() -> T>,
}

impl<T: Value> First<T> {
    /// The value; `None` when the element is missing or empty.
    ///
    /// # Errors
    /// [`FieldError::Unparsable`], which names the element, when its text is no such value.
    pub fn get(&self) -> Result<Option<T>, FieldError> {
        self.text.parse()
    }

    /// The value.
    ///
    /// # Errors
    /// As [`First::get`], and [`FieldError::Missing`] when there is none.
    pub fn required(&self) -> Result<T, FieldError> {
        self.get()?.ok_or_else(|| FieldError::Missing { path: self.text.path.clone().into_owned() })
    }
}

impl<T> First<T> {
    /// The text that the value is written as.
    #[must_use]
    pub fn text(&self) -> &Text {
        &self.text
    }
}

impl<T> fmt::Debug for First<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.fmt(f)
    }
}

impl<T> Field for First<T> {
    fn absent(path: &'static str) -> Self {
        Self { text: Text::absent(path), value: PhantomData }
    }

    fn take(&mut self, parser: &mut Parser<'_>, element: &'static str) -> Result<(), PayloadError> {
        self.text.take(parser, element)
    }
}

/// Every element of a name, in the order of the document.
#[derive(Clone, PartialEq, Eq)]
pub struct All<T> {
    path: &'static str,
    items: Vec<T>,
}

impl<T> Deref for All<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.items
    }
}

impl<'a, T> IntoIterator for &'a All<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.items.iter()
    }
}

impl<T: fmt::Debug> fmt::Debug for All<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.items.fmt(f)
    }
}

impl<T: Field> Field for All<T> {
    fn absent(path: &'static str) -> Self {
        Self { path, items: Vec::new() }
    }

    fn take(&mut self, parser: &mut Parser<'_>, element: &'static str) -> Result<(), PayloadError> {
        parser.occupy(size_of::<T>())?;
        let mut item = T::absent(self.path);
        item.take(parser, element)?;
        self.items.push(item);
        Ok(())
    }
}

/// A record that may be missing as a whole.
impl<T: Field> Field for Option<Box<T>> {
    fn absent(_: &'static str) -> Self {
        None
    }

    fn take(&mut self, parser: &mut Parser<'_>, element: &'static str) -> Result<(), PayloadError> {
        self.get_or_insert_with(|| Box::new(T::absent(element))).take(parser, element)
    }
}

/// A text that is never shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretText {
    path: &'static str,
    /// As in [`Text`].
    secret: Option<Secret>,
}

impl SecretText {
    /// The secret as it stands; `None` when the element is missing or empty.
    #[must_use]
    pub fn get(&self) -> Option<&Secret> {
        self.secret.as_ref().filter(|secret| !secret.reveal().is_empty())
    }

    /// The secret as it stands.
    ///
    /// # Errors
    /// [`FieldError::Missing`] when the element is missing or empty.
    pub fn required(&self) -> Result<&Secret, FieldError> {
        self.get().ok_or_else(|| FieldError::Missing { path: self.path.to_owned() })
    }
}

impl Field for SecretText {
    fn absent(path: &'static str) -> Self {
        Self { path, secret: None }
    }

    fn take(&mut self, parser: &mut Parser<'_>, element: &'static str) -> Result<(), PayloadError> {
        if self.secret.is_some() {
            return parser.skip(element);
        }
        let text = parser.text(element)?;
        parser.occupy(text.len())?;
        self.secret = Some(Secret::new(text));
        Ok(())
    }
}

/// Attributes whose names are not known beforehand, such as `LN_TARGET_SSH`, `RESTIC_NICE` or what a user invents.
///
/// `Debug` shows names only: some values are secrets of which this package knows nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct Attributes {
    path: &'static str,
    texts: BTreeMap<Box<str>, Text>,
}

/// What a map entry costs beyond its name and text, roughly.
const ENTRY: usize = 128;

impl Attributes {
    pub(crate) fn below(path: &'static str) -> Self {
        Self { path, texts: BTreeMap::new() }
    }

    pub(crate) fn take(&mut self, name: &str, parser: &mut Parser<'_>) -> Result<(), PayloadError> {
        if self.texts.contains_key(name) {
            return parser.skip(self.path);
        }
        let text = parser.text(name)?;
        parser.occupy(ENTRY + self.path.len() + 2 * name.len() + text.len())?;
        let path = Cow::Owned(format!("{}/{name}", self.path));
        self.texts.insert(name.into(), Text { path, text: Some(text.into_boxed_str()) });
        Ok(())
    }

    /// The text of an attribute as it stands; `None` when it is missing or empty.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.texts.get(name)?.get()
    }

    /// An attribute with all that [`Text`] can say about it; absent when it is missing.
    #[must_use]
    pub fn text(&self, name: &str) -> Text {
        let absent = || Text { path: Cow::Owned(format!("{}/{name}", self.path)), text: None };
        self.texts.get(name).cloned().unwrap_or_else(absent)
    }

    /// An attribute as a value.
    ///
    /// # Errors
    /// [`FieldError::Unparsable`], which names the attribute.
    pub fn value<T: Value>(&self, name: &str) -> Result<Option<T>, FieldError> {
        self.texts.get(name).map_or(Ok(None), Text::parse)
    }

    /// An attribute that must not be shown.
    #[must_use]
    pub fn secret(&self, name: &str) -> Option<Secret> {
        self.get(name).map(Secret::new)
    }

    /// Names and texts in the order of names; empty ones are left out.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.texts.iter().filter_map(|(name, text)| Some((&**name, text.get()?)))
    }
}

impl fmt::Debug for Attributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.texts.keys()).finish()
    }
}
