package api_test

import (
	"context"
	"errors"
	"testing"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/api"
)

// TestEnforceInHandler: within a handler, Enforce decides as it does for a route. Without a policy, Enforce denies.
func TestEnforceInHandler(t *testing.T) {
	t.Parallel()
	no := errors.New("no")
	m := api.New(api.Config{Enforce: func(_ context.Context, rule string, target map[string]any) error {
		if rule == "a" && target["x"] == 1 {
			return nil
		}
		return no
	}})
	if err := m.Enforce(t.Context(), "a", map[string]any{"x": 1}); err != nil {
		t.Error(err)
	}
	if err := m.Enforce(t.Context(), "b", nil); !errors.Is(err, no) {
		t.Errorf("another rule: %v", err)
	}
	if err := api.New(api.Config{}).Enforce(t.Context(), "a", nil); !errors.Is(err, fault.Denied) {
		t.Errorf("without a policy: %v", err)
	}
}
