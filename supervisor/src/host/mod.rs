//! What the kernel, the file system and the service manager are asked for: the run directory, descriptors, processes,
//! signals. Knows nothing of slots in service.

pub(crate) mod api_sockets;
pub(crate) mod capacity;
pub(crate) mod http;
pub(crate) mod kernel;
pub(crate) mod launch;
pub(crate) mod notify;
pub(crate) mod pressure;
pub(crate) mod probe;
pub(crate) mod run_dir;
pub(crate) mod settings;
pub(crate) mod signals;
pub(crate) mod spawn;
