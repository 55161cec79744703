//! Crashes that tests ask for, by the environment. Without the feature `test-hooks`, which release builds
//! lack, nobody can ask.

/// Ends the process if it is to crash at this point.
pub(crate) fn crash_if_asked(at: &str) {
    if is_crash_wanted(at) {
        std::process::abort();
    }
}

/// As `crash_if_asked`, for crashes that need preparation.
pub(crate) fn is_crash_wanted(at: &str) -> bool {
    cfg!(all(feature = "test-hooks", debug_assertions))
        && std::env::var_os("HOLDFAST_TEST_CRASH").is_some_and(|when| when == at)
}
