package api_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/api"
)

func TestHealth(t *testing.T) {
	t.Parallel()
	m, out := newMux(api.Config{})
	var down error
	m.Health(func(ctx context.Context) error {
		if _, ok := ctx.Deadline(); !ok {
			t.Error("ready is called without a deadline")
		}
		return down
	})
	for _, tt := range []struct {
		path string
		down error
		code int
		want string
	}{
		{"/livez", nil, 200, `{"status":"ok"}`},
		{"/readyz", nil, 200, `{"status":"ok"}`},
		{"/livez", errors.New("the database cannot be reached"), 200, `{"status":"ok"}`},
		{"/readyz", errors.New("dial 10.0.0.1:5672: no broker"), 503, `{"status":"unavailable"}`},
		{"/readyz", fmt.Errorf("%w: dial 10.0.0.1:5672", fault.New(fault.Unavailable, "not ready: bus")), 503, `{"status":"unavailable","reason":"not ready: bus"}`},
	} {
		down = tt.down
		out.reset()
		w := send(t, m, "GET", tt.path, "")
		if w.Code != tt.code || w.Body.String() != tt.want {
			t.Errorf("%s: %d %s, want %d %s", tt.path, w.Code, w.Body, tt.code, tt.want)
		}
		if id := w.Header().Get("X-Openstack-Request-Id"); tt.code == 503 && (!strings.Contains(out.String(), "10.0.0.1:5672") || !strings.Contains(out.String(), id)) {
			t.Errorf("the log does not have the details under %s: %s", id, out)
		} else if tt.code == 200 && out.String() != "" {
			t.Errorf("probes fill the log:\n%s", out)
		}
	}

	// A load balancer asks every second, so the log has only one line for an outage and one for its end.
	out.reset()
	for range 3 {
		send(t, m, "GET", "/readyz", "")
	}
	if out.String() != "" {
		t.Errorf("the same failure again is in the log:\n%s", out)
	}
	down = nil
	for range 2 {
		send(t, m, "GET", "/readyz", "")
	}
	if s := out.String(); strings.Count(s, "\n") != 1 || !strings.Contains(s, "readiness check works again") {
		t.Errorf("the end of the outage in the log:\n%s", s)
	}
}

// TestHealthWithoutReady: a missing function makes the program fail at its start, and not in a request.
func TestHealthWithoutReady(t *testing.T) {
	t.Parallel()
	m, _ := newMux(api.Config{})
	defer func() {
		if got, _ := recover().(string); !strings.Contains(got, "Health") {
			t.Errorf("Health(nil) panics with %q", got)
		}
	}()
	m.Health(nil)
}
