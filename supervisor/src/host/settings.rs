//! From the configuration to what a worker is told to enforce. Pure.

use std::time::Duration;

use holdfast_shared::channels::token_keys::TokenKeys;
use holdfast_shared::config::{Config, ForwardingHeader, RefusalMode};
use holdfast_shared::ipc::settings::{ChannelSettings, Degraded, Settings};
use holdfast_shared::ipc::settings_memory::{self, SettingsMemoryError};

use super::capacity::Capacity;

/// What a worker is told.
#[must_use]
pub fn for_worker(config: &Config, capacity: &Capacity) -> Settings {
    Settings {
        rows: capacity.rows,
        max_pending_handshakes: capacity.pending_per_worker,
        max_message_size: config.limits.max_message_size as u64,
        max_queued_output: config.limits.max_queued_output as u64,
        retry_after: config.limits.retry_after,
        handshake_timeout: config.timeouts.handshake,
        ping_interval: config.timeouts.ping_interval.unwrap_or_default(),
        pong_timeout: config.timeouts.pong,
        idle_timeout: config.timeouts.idle.unwrap_or_default(),
        close_timeout: config.timeouts.close,
        path: config.security.path.clone(),
        allowed_origins: config.security.allowed_origins.clone(),
        trusted_proxies: config.proxy.trusted.clone(),
        reads_forwarded: config.proxy.header == ForwardingHeader::Forwarded,
        has_proxy_header: config.proxy.proxy_protocol,
        refuses_with_close: config.limits.refusal == RefusalMode::Close,
        routes: config.routes.clone(),
        max_buffered_total: capacity.buffered_per_worker,
        stalled_timeout: config.timeouts.stalled.unwrap_or_default(),
        message_timeout: config.timeouts.message.unwrap_or_default(),
        messages_per_second: config.limits.messages_per_second.map_or(0, Into::into),
        waiting_room_timeout: match config.limits.waiting_room {
            0 => Duration::ZERO,
            _ => config.limits.waiting_room_timeout,
        },
        degraded: Some(Degraded {
            ping_interval: config.degraded.ping_interval,
            allow_broadcast: config.degraded.allow_broadcast,
            max_message_size: config.degraded.max_message_size as u64,
            notify_clients: config.degraded.notify_clients,
            messages_per_second: config.degraded.messages_per_second.map_or(0, Into::into),
        }),
        broadcasts_are_off: false,
        channels: config.has_channels().then(|| ChannelSettings {
            // Known where the hub is.
            memory: 0,
            rules: config.channels.rules.clone(),
            // A reload may have raised it beyond the journal, which stays.
            max_lag: config.channels.max_lag.min(config.channels.most_lag()) as u64,
            max_subscriptions: config.channels.max_subscriptions,
            tokens: TokenKeys {
                secret: config.secrets.token_secret.clone(),
                public: config.secrets.token_keys.clone(),
                audience: config.tokens.audience.clone(),
            },
        }),
    }
}

/// Can workers be told all that this configuration says?
///
/// # Errors
/// When it is too much.
pub fn check(config: &Config) -> Result<(), SettingsMemoryError> {
    let most = u32::MAX;
    let capacity = Capacity {
        max_connections: most,
        pending_per_worker: most,
        rows: most,
        buffered_per_worker: u64::MAX,
    };
    settings_memory::encode(u64::MAX, &for_worker(config, &capacity)).map(drop)
}
