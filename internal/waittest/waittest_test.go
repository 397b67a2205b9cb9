package waittest_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/armature-go/armature/internal/waittest"
)

// failure is a test whose Fatalf is recorded. Fatalf ends the test with a panic, which the method run catches.
type failure struct {
	testing.TB

	text string
}

func (f *failure) Helper()             {}
func (f *failure) Logf(string, ...any) {}
func (f *failure) Fatalf(format string, args ...any) {
	f.text = fmt.Sprintf(format, args...)
	panic(f)
}

func (f *failure) run(body func()) {
	defer func() { _ = recover() }()
	body()
}

func TestWait(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		wait func(f *failure, started time.Time)
		took time.Duration
		want string
	}{
		{"true at once", func(f *failure, _ time.Time) { waittest.Until(f, "it", func() bool { return true }) }, 0, ""},
		{"true later", func(f *failure, started time.Time) {
			waittest.Until(f, "it", func() bool { return time.Since(started) >= time.Second })
		}, time.Second, ""},
		{"never true", func(f *failure, _ time.Time) { waittest.Until(f, "the sun", func() bool { return false }) }, waittest.Timeout, "waited 30s for the sun: not yet"},
		{"never nil", func(f *failure, _ time.Time) {
			waittest.Succeeds(f, "the sun", func() error { return errors.New("night") })
		}, waittest.Timeout, "waited 30s for the sun: night"},
		{"time passes", func(f *failure, _ time.Time) { waittest.Pass(f, time.Minute, "of this test") }, time.Minute, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				got, started := &failure{TB: t}, time.Now()
				got.run(func() { tt.wait(got, started) })
				if took := time.Since(started); got.text != tt.want || took < tt.took || took > tt.took+50*time.Millisecond {
					t.Errorf("%q after %s, want %q after %s", got.text, took, tt.want, tt.took)
				}
				if strings.Contains(got.text, "%!") {
					t.Errorf("format of %q", got.text)
				}
			})
		})
	}
}
