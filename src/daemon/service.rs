//! Word to the service manager (sd_notify); without the feature `systemd`, or outside a service, nothing happens.

use std::time::Duration;

/// The protocol's messages that are used here.
#[derive(Clone, Debug)]
pub(super) enum Notice<'a> {
    Ready,
    Stopping,
    /// One line for `systemctl status`.
    Status(&'a str),
    Watchdog,
    /// Stopping takes this much longer.
    ExtendTimeout(Duration),
}

#[cfg(feature = "systemd")]
pub(super) fn notify(notice: &Notice<'_>) {
    use systemd::daemon;
    let (key, value) = match notice {
        Notice::Ready => (daemon::STATE_READY, "1".to_owned()),
        Notice::Stopping => (daemon::STATE_STOPPING, "1".to_owned()),
        // A NUL would end the message, a line break would begin another one.
        Notice::Status(text) => (daemon::STATE_STATUS, text.replace(['\0', '\n'], " ")),
        Notice::Watchdog => (daemon::STATE_WATCHDOG, "1".to_owned()),
        Notice::ExtendTimeout(span) => (daemon::STATE_EXTEND_TIMEOUT_USEC, span.as_micros().to_string()),
    };
    if let Err(error) = daemon::notify([(key, value.as_str())].iter()) {
        tracing::debug!("the service manager was not told {key}: {error}");
    }
}

#[cfg(not(feature = "systemd"))]
pub(super) fn notify(_notice: &Notice<'_>) {}

/// How often the manager wants to hear from us, if it does (WATCHDOG_USEC).
#[cfg(feature = "systemd")]
pub(super) fn watchdog_interval() -> Option<Duration> {
    match systemd::daemon::watchdog_enabled() {
        Ok(usec) if usec > 0 => Some(Duration::from_micros(usec)),
        _ => None,
    }
}

#[cfg(not(feature = "systemd"))]
pub(super) fn watchdog_interval() -> Option<Duration> {
    None
}
