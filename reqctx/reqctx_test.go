package reqctx_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"reflect"
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

func TestIsZero(t *testing.T) {
	t.Parallel()
	if !(reqctx.Request{}).IsZero() || !(reqctx.Request{Roles: []string{}}).IsZero() {
		t.Error("an empty Request is not zero")
	}
	typ := reflect.TypeFor[reqctx.Request]()
	for i := range typ.NumField() {
		var r reqctx.Request
		switch f := reflect.ValueOf(&r).Elem().Field(i); f.Kind() {
		case reflect.String:
			f.SetString("x")
		default:
			f.Set(reflect.ValueOf([]string{"x"}))
		}
		if r.IsZero() {
			t.Errorf("a request with %s is zero", typ.Field(i).Name)
		}
	}
}

// TestJSON: a request has one form on every wire. The other names that older programs write for the ids are also read.
func TestJSON(t *testing.T) {
	t.Parallel()
	full := reqctx.Request{
		ID: "req-1", GlobalID: "req-2", UserID: "u", ProjectID: "p", DomainID: "d", SystemScope: "all", Roles: []string{"reader"}, Traceparent: "00-1",
	}
	const text = `{"request_id":"req-1","global_request_id":"req-2","user_id":"u","project_id":"p","domain_id":"d","system_scope":"all","roles":["reader"],"traceparent":"00-1"}`
	if raw, err := json.Marshal(full); string(raw) != text || err != nil {
		t.Errorf("the request is written as %s, %v", raw, err)
	}
	for name, tt := range map[string]struct {
		text string
		want reqctx.Request
	}{
		"now":        {text, full},
		"before":     {`{"id":"req-1","global_id":"req-2","user_id":"u"}`, reqctx.Request{ID: "req-1", GlobalID: "req-2", UserID: "u"}},
		"both":       {`{"id":"old","global_id":"old","request_id":"req-1","global_request_id":"req-2"}`, reqctx.Request{ID: "req-1", GlobalID: "req-2"}},
		"unknown":    {`{"request_id":"req-1","later":[1]}`, reqctx.Request{ID: "req-1"}},
		"empty":      {`{}`, reqctx.Request{}},
		"wrong type": {`{"request_id":7}`, reqctx.Request{ID: "kept"}},
	} {
		got := reqctx.Request{ID: "kept"}
		if err := json.Unmarshal([]byte(tt.text), &got); (err != nil) != (name == "wrong type") {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}
