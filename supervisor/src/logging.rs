//! Log lines: time, level, who, what. Who is the role and the process, for the lines of all processes come
//! out of one stream.

use std::io::Write;

use env_logger::{Builder, Env, Target};
use log::LevelFilter;

/// Starts logging to standard error. `HOLDFAST_LOG` chooses more or less (`debug`, `holdfast_worker=trace`);
/// the default is `info`.
pub fn start(role: &'static str) {
    let mut builder = Builder::new();
    builder.filter_level(LevelFilter::Info);
    builder.parse_env(Env::new().filter("HOLDFAST_LOG").write_style("HOLDFAST_LOG_STYLE"));
    builder.target(Target::Stderr);
    builder.format(move |out, record| {
        let (time, level) = (out.timestamp_millis(), record.level());
        writeln!(out, "{time} {level:<5} {role}[{}] {}", std::process::id(), record.args())
    });
    // A second start keeps the first logger: nothing is lost by that.
    let _ = builder.try_init();
}
