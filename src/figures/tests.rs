//! All figures, from runs of a few updates.

use super::*;
use crate::torch;

#[test]
fn the_same_seed_gives_the_same_bytes() {
    torch::set_threads(1);
    for figure in Figure::ALL {
        let draw = |seed| figure.draw(&Study { seed, brief: true }).unwrap();
        let first = draw(0);
        assert_eq!(first, draw(0), "{figure}");
        assert!(!first.findings.is_empty(), "{figure}");
        assert!(first.svg.trim_end().ends_with("</svg>"), "{figure}");
        assert!(!first.svg.contains("NaN"), "{figure}");
        // Figure 14 draws nothing by chance.
        if figure != Figure::Divergences {
            assert_ne!(first.svg, draw(1).svg, "{figure}");
        }
    }
}
