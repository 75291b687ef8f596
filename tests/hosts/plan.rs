//! `plan!(NAME, TEXT)`: a plan is what its snapshot holds. Whoever uses it says in `PLANS` in which folder those lie.

macro_rules! plan {
    ($name:expr, $text:expr) => {
        insta::with_settings!({ snapshot_path => PLANS, prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!($name, $text);
        });
    };
}
