package fault_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/armature-go/armature/fault"
)

var errNoRoom = fault.Sentinel(fault.Exhausted, "NoRoom", "no room on host")

func TestCodeOf(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		err  error
		want fault.Code
	}{
		{"plain", io.EOF, fault.Internal},
		{"new", fault.New(fault.NotFound, "x"), fault.NotFound},
		{"wrapped", fmt.Errorf("a: %w", fault.New(fault.Denied, "x")), fault.Denied},
		{"the outermost code", fault.New(fault.Unknown, "a: %w", errNoRoom), fault.Unknown},
		{"code itself", fmt.Errorf("a: %w", fault.Conflict), fault.Conflict},
		{"deadline", fmt.Errorf("a: %w", context.DeadlineExceeded), fault.Timeout},
		{"canceled", context.Canceled, fault.Canceled},
		{"joined", errors.Join(io.EOF, errNoRoom), fault.Exhausted},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := fault.CodeOf(tt.err); got != tt.want {
				t.Errorf("CodeOf(%v) = %v, want %v", tt.err, got, tt.want)
			}
		})
	}
}

// TestAcrossTheWire sends errors through JSON, as every transport does.
func TestAcrossTheWire(t *testing.T) {
	t.Parallel()
	err := fault.New(fault.Precondition, "host %s: %w", "n1", fmt.Errorf("claim: %w", errNoRoom))
	if !errors.Is(err, errNoRoom) || !errors.Is(err, fault.Precondition) {
		t.Fatalf("%#v does not match its own code and the error that it wraps", err)
	}
	if fault.IsRemote(err) {
		t.Error("a local error is remote")
	}
	got := send(t, err)
	if want := "host n1: claim: no room on host"; got.Error() != want {
		t.Errorf("message %q, want %q", got.Error(), want)
	}
	for _, target := range []error{errNoRoom, fault.Precondition} {
		if !errors.Is(got, target) {
			t.Errorf("errors.Is(remote, %v) = false", target)
		}
	}
	if errors.Is(got, fault.NotFound) || errors.Is(got, fault.Sentinel(fault.Exhausted, "Other", "")) {
		t.Error("the error matches another code or another reason")
	}
	if !fault.IsRemote(fmt.Errorf("call: %w", got)) {
		t.Error("IsRemote = false for an error that a peer sent")
	}
	if again := send(t, fmt.Errorf("relayed: %w", got)); !errors.Is(again, errNoRoom) {
		t.Error("the reason is lost by a relay")
	}
}

func send(t *testing.T, err error) error {
	t.Helper()
	raw, jerr := json.Marshal(fault.From(err))
	if jerr != nil {
		t.Fatal(jerr)
	}
	var e fault.Error
	if jerr := json.Unmarshal(raw, &e); jerr != nil {
		t.Fatal(jerr)
	}
	return fault.Remote(e)
}

func TestFrom(t *testing.T) {
	t.Parallel()
	inner := &fault.Error{Code: fault.Invalid, Reason: "BadField", Msg: "bad", Meta: map[string]string{"field": "name"}}
	private := &fault.Error{Code: fault.Conflict, Reason: "DuplicateKey", Msg: "Error 1062", Private: true}
	tests := []struct {
		name string
		err  error
		want *fault.Error
	}{
		{"nil", nil, nil},
		{"plain", io.EOF, &fault.Error{Code: fault.Internal, Msg: "EOF"}},
		{"details", fmt.Errorf("create: %w", inner), &fault.Error{
			Code: fault.Invalid, Reason: "BadField", Msg: "create: bad", Meta: map[string]string{"field": "name"}, User: "bad",
		}},
		{"a failure of the service", fmt.Errorf("call: %w", fault.New(fault.Unavailable, "no bus")), &fault.Error{Code: fault.Unavailable, Msg: "call: no bus"}},
		{"private", fmt.Errorf("call: %w", private), &fault.Error{Code: fault.Conflict, Reason: "DuplicateKey", Msg: "call: Error 1062", Private: true}},
		{"translated", fmt.Errorf("call: %w", fault.New(fault.Conflict, "exists: %w", private)), &fault.Error{
			Code: fault.Conflict, Reason: "DuplicateKey", Msg: "call: exists: Error 1062", User: "exists: internal error",
		}},
		{"for users", fmt.Errorf("call: %w", fault.WithUser(private, "It exists.")), &fault.Error{Code: fault.Conflict, Reason: "DuplicateKey", Msg: "call: Error 1062", User: "It exists."}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(tt.want, fault.From(tt.err), cmpopts.IgnoreUnexported(fault.Error{})); diff != "" {
				t.Errorf("From (-want +got):\n%s", diff)
			}
		})
	}
}

// TestCodeFromNewerPeer: a code that this release does not know is read as Internal.
func TestCodeFromNewerPeer(t *testing.T) {
	t.Parallel()
	var e fault.Error
	if err := json.Unmarshal([]byte(`{"code":"Quantum","msg":"m"}`), &e); err != nil || e.Code != fault.Internal {
		t.Errorf("code %v, error %v; want Internal, nil", e.Code, err)
	}
}

func Example() {
	claim := func() error { return fmt.Errorf("claim on n1: %w", errNoRoom) }
	err := claim()
	fmt.Println(err)
	fmt.Println(errors.Is(err, errNoRoom), errors.Is(err, fault.Exhausted), fault.CodeOf(err))
	// Output:
	// claim on n1: no room on host
	// true true Exhausted
}

// TestUserMessage: users read the right text of an error, on both sides of a wire.
func TestUserMessage(t *testing.T) {
	t.Parallel()
	private := &fault.Error{Code: fault.Denied, Msg: "Error 1142: INSERT command denied to user", Private: true}
	for _, tt := range []struct {
		name    string
		err     error
		want    string
		private bool
	}{
		{"nil", nil, "", false},
		{"plain", io.EOF, "internal error", false},
		{"a fault", fault.New(fault.Invalid, "bad size"), "bad size", false},
		{"wrapped", fmt.Errorf("on n1: %w", fault.New(fault.Invalid, "bad size")), "bad size", false},
		{"private", private, "internal error", true},
		{"private, wrapped", fmt.Errorf("create: %w", private), "internal error", true},
		{"private within", fault.New(fault.Exhausted, "no room: %w", private), "no room: internal error", false},
		{"private within, twice", fault.New(fault.Exhausted, "no room: %w", fault.New(fault.Invalid, "a: %w", private)), "no room: a: internal error", false},
		{"as a value", fault.New(fault.Exhausted, "no room: %v", private), "no room: internal error", false},
		{"for users", fault.WithUser(private, "Come back later."), "Come back later.", false},
		{"for users, of nil", fault.WithUser(nil, "x"), "", false},
	} {
		if got := fault.UserMessage(tt.err); got != tt.want || fault.IsPrivate(tt.err) != tt.private {
			t.Errorf("%s: %q, private %t, want %q", tt.name, got, fault.IsPrivate(tt.err), tt.want)
		}
		if tt.err == nil || tt.name == "plain" {
			continue
		}
		raw, err := json.Marshal(fault.From(tt.err))
		if err != nil {
			t.Fatal(err)
		}
		var e fault.Error
		if err := json.Unmarshal(raw, &e); err != nil {
			t.Fatal(err)
		}
		if got := fault.UserMessage(fmt.Errorf("call: %w", fault.Remote(e))); got != tt.want || fault.IsPrivate(fault.Remote(e)) != tt.private {
			t.Errorf("%s, of a peer: %q, want %q", tt.name, got, tt.want)
		}
	}
}

// TestWith: WithReason, WithPrivate and WithUser return a new error. The wrapped error does not change.
func TestWith(t *testing.T) {
	t.Parallel()
	base := fault.WithReason(fault.New(fault.Exhausted, "claim: %w", errNoRoom), "", map[string]string{"host": "n1"})
	details := map[string]string{"host": "n2", "class": "DISK_GB"}
	tests := []struct {
		name string
		err  error
		want fault.Error
	}{
		{"without a reason: the reason of the wrapped error", base, fault.Error{Code: fault.Exhausted, Reason: "NoRoom", Msg: "claim: no room on host", Meta: map[string]string{"host": "n1"}}},
		{"another reason, more details", fault.WithReason(base, "NoDisk", details), fault.Error{
			Code: fault.Exhausted, Reason: "NoDisk", Msg: "claim: no room on host", Meta: map[string]string{"host": "n2", "class": "DISK_GB"},
		}},
		{"a plain error", fault.WithReason(io.EOF, "Short", nil), fault.Error{Code: fault.Internal, Reason: "Short", Msg: "EOF"}},
		{"private", fault.WithPrivate(fault.WithUser(base, "No room.")), fault.Error{
			Code: fault.Exhausted, Reason: "NoRoom", Msg: "claim: no room on host", Meta: map[string]string{"host": "n1"}, Private: true,
		}},
		{"for users", fault.WithUser(fault.WithPrivate(base), "No room."), fault.Error{
			Code: fault.Exhausted, Reason: "NoRoom", Msg: "claim: no room on host", Meta: map[string]string{"host": "n1"}, User: "No room.",
		}},
	}
	details["host"] = "changed by its owner"
	for _, tt := range tests {
		got, ok := errors.AsType[*fault.Error](tt.err)
		if !ok {
			t.Errorf("%s: %T is not a fault.Error", tt.name, tt.err)
			continue
		}
		if diff := cmp.Diff(&tt.want, got, cmpopts.IgnoreUnexported(fault.Error{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
		if tt.want.Reason != "Short" && !errors.Is(tt.err, errNoRoom) {
			t.Errorf("%s: the new error does not match the wrapped error", tt.name)
		}
	}
	if !errors.Is(tests[1].err, fault.Sentinel(fault.Exhausted, "NoDisk", "")) {
		t.Error("the error does not match its own reason")
	}
	for _, err := range []error{fault.WithReason(nil, "X", nil), fault.WithPrivate(nil), fault.WithUser(nil, "x")} {
		if err != nil {
			t.Errorf("made of nil: %v, want nil", err)
		}
	}
}

func ExampleWithReason() {
	err := fault.WithReason(fault.New(fault.Invalid, "size 0 is too small"), "BadSize", map[string]string{"field": "size"})
	fmt.Println(err)
	fmt.Println(fault.From(err).Reason, fault.From(err).Meta["field"])
	// Output:
	// size 0 is too small
	// BadSize size
}
