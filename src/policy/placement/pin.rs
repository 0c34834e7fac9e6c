//! What placement may not do with a block, whatever its heat.

use crate::units::TierId;

/// Why a block must be where it must be, whatever its heat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Pin {
    #[default]
    None,
    /// A user asked for it.
    To(TierId),
    /// A log file belongs on the fastest tier, within [`super::PlacementSettings::log_share`].
    LogFile,
    /// A catalog belongs on the fastest tier, within [`super::PlacementSettings::catalog_share`].
    Catalog,
    /// Heat decides, within bounds.
    Within(Bounds),
    /// It was just missed and lies on the fastest tier for a while, in [`super::PlacementSettings::staging_blocks`]. It leaves when the staging cache lets it.
    Staged,
}

/// What is allowed of a block that heat places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Tiers where it must not be, a bit for each.
    pub never: u16,
    /// May heat bring it up?
    pub promoted: bool,
    /// May it sink?
    pub demoted: bool,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds { never: 0, promoted: true, demoted: true }
    }
}

impl Bounds {
    pub fn allows(self, tier: TierId) -> bool {
        self.never & 1u16.checked_shl(u32::from(tier.0)).unwrap_or(0) == 0
    }

    /// The tier next to `tier` on which it may be, slower ones first.
    pub(super) fn nearest(self, tier: TierId, tiers: usize) -> Option<TierId> {
        let slower = (tier.0..).map(TierId).take_while(|tier| tier.index() < tiers);
        slower.chain((0..tier.0).rev().map(TierId)).find(|tier| self.allows(*tier))
    }
}

impl Pin {
    /// May a block be brought to this tier?
    pub fn allows(self, tier: TierId) -> bool {
        match self {
            Pin::Within(bounds) => bounds.allows(tier),
            Pin::None | Pin::To(_) | Pin::LogFile | Pin::Catalog | Pin::Staged => true,
        }
    }

    /// Which of the fastest tier's reserves it lives in.
    pub(super) fn reserve(self) -> Option<usize> {
        match self {
            Pin::LogFile => Some(0),
            Pin::Catalog => Some(1),
            Pin::None | Pin::To(_) | Pin::Within(_) | Pin::Staged => None,
        }
    }
}

/// Reserves of the fastest tier, see [`Pin::reserve`].
pub(super) const RESERVES: usize = 2;
