package reqctx_test

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/reqctx"
)

func TestWithFrom(t *testing.T) {
	t.Parallel()
	if diff := cmp.Diff(reqctx.Request{}, reqctx.From(t.Context())); diff != "" {
		t.Errorf("From an empty context (-want +got):\n%s", diff)
	}
	want := reqctx.Request{ID: reqctx.NewID(), ProjectID: "p", Roles: []string{"member"}}
	if diff := cmp.Diff(want, reqctx.From(reqctx.With(t.Context(), want))); diff != "" {
		t.Errorf("From (-want +got):\n%s", diff)
	}
}

func TestValidID(t *testing.T) {
	t.Parallel()
	good := reqctx.NewID()
	if good == reqctx.NewID() {
		t.Error("NewID twice the same")
	}
	tests := []struct {
		id   string
		want bool
	}{
		{good, true},
		{strings.ToUpper(good), false}, // the prefix is lower case
		{"", false},
		{"req-", false},
		{good[4:], false},
		{good + "0", false},
		{"req-0000000000000-0000-0000-000000000000", false},
		{"req-g0000000-0000-0000-0000-000000000000", false},
		{"req-00000000-0000-0000-0000-00000000\n000", false},
	}
	for _, tt := range tests {
		if got := reqctx.ValidID(tt.id); got != tt.want {
			t.Errorf("ValidID(%q) = %v, want %v", tt.id, got, tt.want)
		}
	}
}

func TestLogHandlerKeepsAttrsAndGroups(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	log := slog.New(reqctx.LogHandler(slog.NewTextHandler(&out, nil))).With("a", 1)
	ctx := reqctx.With(t.Context(), reqctx.Request{ID: "req-1", GlobalID: "req-2", UserID: "u", ProjectID: "p"})
	log.InfoContext(ctx, "hello", "b", 2)
	log.WithGroup("g").DebugContext(ctx, "dropped")
	got := out.String()
	for _, want := range []string{"a=1", "b=2", "request_id=req-1", "global_request_id=req-2", "user_id=u", "project_id=p"} {
		if !strings.Contains(got, want) {
			t.Errorf("log line %q lacks %s", got, want)
		}
	}
	if strings.Contains(got, "dropped") {
		t.Errorf("log has a record below its level: %q", got)
	}
}

func ExampleLogHandler() {
	text := slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	})
	log := slog.New(reqctx.LogHandler(text))
	ctx := reqctx.With(context.Background(), reqctx.Request{ID: "req-1", ProjectID: "p1"})
	log.InfoContext(ctx, "spawn")
	// Output: level=INFO msg=spawn request_id=req-1 project_id=p1
}
