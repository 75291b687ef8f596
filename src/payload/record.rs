//! How a record is declared: a struct whose fields are elements.

use super::{Parser, PayloadError};

/// Something that takes the children of an element, one by one.
pub(crate) trait Record {
    /// Takes the child `name`, whose start tag has just been read, to its end.
    fn child(&mut self, name: &str, parser: &mut Parser<'_>) -> Result<(), PayloadError>;
}

/// Declares a struct whose fields are the elements below `$path`, which errors name.
///
/// A nested record met twice goes on where it stopped, as `XPath` look-ups see it. `.. name` collects the texts of all
/// other elements, `..` skips them.
macro_rules! record {
    (
        $(#[$meta:meta])*
        pub struct $name:ident = $path:literal {
            $( $(#[$field_meta:meta])* $field:ident: $type:ty = $element:literal, )*
            $(.. $rest:ident)?
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name {
            $( $(#[$field_meta])* pub $field: $type, )*
            $( /// The texts of all other elements.
            pub $rest: $crate::payload::Attributes, )?
        }

        impl Default for $name {
            fn default() -> Self {
                Self {
                    $( $field: <$type as $crate::payload::field::Field>::absent(concat!($path, "/", $element)), )*
                    $( $rest: $crate::payload::Attributes::below($path), )?
                }
            }
        }

        impl $crate::payload::Record for $name {
            fn child(
                &mut self,
                name: &str,
                parser: &mut $crate::payload::Parser<'_>,
            ) -> Result<(), $crate::payload::PayloadError> {
                match name {
                    $( $element => $crate::payload::field::Field::take(&mut self.$field, parser, $element), )*
                    _ => record!(@rest self name parser $path $($rest)?),
                }
            }
        }

        impl $crate::payload::field::Field for $name {
            fn absent(_: &'static str) -> Self {
                Self::default()
            }

            fn take(
                &mut self,
                parser: &mut $crate::payload::Parser<'_>,
                element: &'static str,
            ) -> Result<(), $crate::payload::PayloadError> {
                parser.children(self, element)
            }
        }
    };
    (@rest $self:ident $name:ident $parser:ident $path:literal) => { $parser.skip($path) };
    (@rest $self:ident $name:ident $parser:ident $path:literal $rest:ident) => { $self.$rest.take($name, $parser) };
}

pub(crate) use record;
