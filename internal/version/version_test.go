package version_test

import (
	"testing"

	"github.com/armature-go/armature/internal/version"
)

// TestParse: only two decimal numbers with one dot are a version.
func TestParse(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][2]int{"1.0": {1, 0}, "2.53": {2, 53}, "0.5": {0, 5}, "2147483647.10": {2147483647, 10}} {
		if major, minor, ok := version.Parse(text); !ok || major != want[0] || minor != want[1] {
			t.Errorf("%q: %d, %d, %v", text, major, minor, ok)
		}
	}
	for _, text := range []string{
		"", ".", "1", "1.", ".1", "+1.3", "1.+3", "-1.3", "1.-3", "1.3.4", " 1.3", "1.3 ", "1. 3", "01.3", "1.03", "1_0.3", "0x1.3", "1.3e1", "one",
		"2-beta", "2147483648.0", "1.99999999999999999999", "\u0661.3",
	} {
		if major, minor, ok := version.Parse(text); ok {
			t.Errorf("%q was read as %d.%d", text, major, minor)
		}
	}
}
