package backoff_test

import (
	"context"
	"testing"
	"time"

	"github.com/armature-go/armature/internal/backoff"
)

func TestExponential(t *testing.T) {
	for _, c := range []struct {
		failed    int
		low, high time.Duration
		want      time.Duration
	}{
		{1, time.Second, time.Minute, time.Second},
		{2, time.Second, time.Minute, 2 * time.Second},
		{6, time.Second, time.Minute, 32 * time.Second},
		{7, time.Second, time.Minute, time.Minute},
		{1, time.Minute, time.Second, time.Second},
		{40, 3 * time.Hour, 240 * time.Hour, 240 * time.Hour}, // the shift would overflow to a positive number
		{1 << 30, time.Nanosecond, time.Second, time.Second},
		{1 << 30, time.Hour, time.Second, time.Second},
		{5, 0, time.Second, 0},
	} {
		if got := backoff.Exponential(c.failed, c.low, c.high); got != c.want {
			t.Errorf("Exponential(%d, %v, %v) = %v, want %v", c.failed, c.low, c.high, got, c.want)
		}
	}
}

func TestJitter(t *testing.T) {
	for range 1000 {
		if d := backoff.Delay(3, time.Second, time.Minute); d < 2*time.Second || d > 4*time.Second {
			t.Fatalf("Delay = %v, want 2 s to 4 s", d)
		}
		if d := backoff.FullJitter(3, time.Second, time.Minute); d <= 0 || d > 4*time.Second {
			t.Fatalf("FullJitter = %v, want at most 4 s", d)
		}
	}
}

func TestSleepEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if backoff.Sleep(ctx, time.Hour) || !backoff.Sleep(t.Context(), 0) {
		t.Error("Sleep does not tell whether the context ended first")
	}
}
