//! What makes a record fit to cross into the kernel.

/// Asserts a record's size and, in user space, implements `aya::Pod` for it.
///
/// A record given to this macro is `repr(C)` and has no implicit padding: its fields' sizes add up
/// to the size asserted, which the macro checks.
macro_rules! pod {
    ($($type:ident { size: $size:expr, fields: [$($field:ty),* $(,)?] })*) => {$(
        const _: () = {
            assert!(size_of::<$type>() == $size);
            assert!(0 $(+ size_of::<$field>())* == $size, "implicit padding");
        };

        // SAFETY: the record is `repr(C)`, made of integers, arrays of integers and `MapCell`s of
        // integers (transparent), and the assertion above proves that it has no padding, so every
        // byte is initialised and any byte pattern is a value.
        #[cfg(feature = "user")]
        #[expect(unsafe_code, reason = "aya::Pod is an unsafe trait; proven above")]
        unsafe impl aya::Pod for $type {}
    )*};
}
pub(crate) use pod;

/// For records that hold `MapCell`s, which cannot be `Copy` and so not `aya::Pod`: the same proof,
/// and conversions from and to the plain words that user space reads and writes.
macro_rules! pod_words {
    ($type:ident { words: $words:expr, fields: [$($field:ty),* $(,)?] $(,)? }) => {
        const _: () = {
            assert!(size_of::<$type>() == $words * 8);
            assert!(0 $(+ size_of::<$field>())* == $words * 8, "implicit padding");
        };

        impl From<[u64; $words]> for $type {
            #[expect(unsafe_code, reason = "proven below")]
            fn from(words: [u64; $words]) -> Self {
                // SAFETY: equal sizes, no padding (both asserted above), and every field is an
                // integer or a transparent cell of one, so any bit pattern is a value.
                unsafe { core::mem::transmute(words) }
            }
        }

        impl From<&$type> for [u64; $words] {
            #[expect(unsafe_code, reason = "proven below")]
            fn from(record: &$type) -> Self {
                // SAFETY: as above, in the other direction: no byte is uninitialised.
                unsafe { core::mem::transmute(record.clone()) }
            }
        }
    };
}
pub(crate) use pod_words;
