package bus_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc/bus"
)

// TestMetadata: Decode returns the message that Metadata wrote, and the texts are those of the previous release.
func TestMetadata(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 23, 7, 38, 13, 500_000_000, time.UTC)
	v21 := struct{ Major, Minor int }{2, 1}
	tests := []struct {
		m    bus.Message
		want map[string]string
	}{
		{
			bus.Message{Kind: bus.Call, Interface: "backup", Method: "list", Version: v21, Deadline: at, Heartbeat: 15 * time.Second, FirstHeartbeat: 100 * time.Millisecond, ReplyTo: "reply.x"},
			map[string]string{"rpc": "call backup.list 2.1 deadline=2026-11-23T07:38:13.5Z beat=15s first=100ms", "reply_to": "reply.x"},
		},
		{
			bus.Message{Kind: bus.Cast, Interface: "a.b", Method: "start", Version: v21, Durable: true, Options: "new=1 other", Failures: 2, Waited: time.Second, Redeliveries: 3, Requeues: 4},
			map[string]string{"rpc": "cast a.b.start 2.1 at-least-once new=1 other", "failures": "2", "waited": "1000", "redeliveries": "3", "requeues": "4"},
		},
		{
			bus.Message{
				Kind: bus.Cast, Interface: "backup", Method: "start", Version: v21, Header: map[string]string{"context": "{}"},
				Dead: &bus.Dead{Reason: "no", Topic: "backup", Server: "h", At: at, Truncated: 9},
			},
			map[string]string{
				"rpc": "cast backup.start 2.1", "context": "{}", "reason": "no", "topic": "backup", "server": "h", "died_at": "2026-11-23T07:38:13.5Z", "truncated": "9",
			},
		},
		{
			bus.Message{Kind: bus.Cast, Interface: "backup", Method: "start", Version: v21, Dead: &bus.Dead{Topic: "backup", At: at}},
			map[string]string{"rpc": "cast backup.start 2.1", "reason": "", "topic": "backup", "died_at": "2026-11-23T07:38:13.5Z"},
		},
		{bus.Message{Kind: bus.Fanout, Interface: "backup", Method: "start", Version: v21, Dead: &bus.Dead{}}, map[string]string{"rpc": "fanout backup.start 2.1", "reason": ""}},
		{bus.Message{Kind: bus.Reply, Correlation: "c", Instance: "i"}, map[string]string{"rpc": "reply", "correlation_id": "c", "instance": "i"}},
		{bus.Message{Kind: bus.Heartbeat, Correlation: "c"}, map[string]string{"rpc": "beat", "correlation_id": "c"}},
	}
	for _, tt := range tests {
		got := maps.Collect(tt.m.Metadata())
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("written (-want +got):\n%s", diff)
		}
		back := bus.Decode(tt.m.ID, maps.All(got), tt.m.Payload)
		if diff := cmp.Diff(&tt.m, back, cmpopts.IgnoreUnexported(bus.Message{})); diff != "" {
			t.Errorf("%s read back (-want +got):\n%s", tt.want["rpc"], diff)
		}
	}
}

// TestVersions: a message without a version needs 1.0. A text that does not have the form MAJOR.MINOR is not a version.
func TestVersions(t *testing.T) {
	t.Parallel()
	old := bus.Decode("id", maps.All(map[string]string{"rpc": "cast backup.start"}), nil)
	if old.Version.Major != 1 || old.Version.Minor != 0 || old.Malformed != nil {
		t.Errorf("no version: %v, %v", old.Version, old.Malformed)
	}
	for _, text := range []string{"+1.+3", "1.-3", "1", "01.3", "1.03", "1.3.4", "one"} {
		if _, _, err := bus.ParseVersion(text); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("ParseVersion(%q): %v", text, err)
		}
		if m := bus.Decode("id", maps.All(map[string]string{"rpc": "cast backup.start " + text}), nil); fault.CodeOf(m.Malformed) != fault.Invalid {
			t.Errorf("a message of version %q: %v, %v", text, m.Version, m.Malformed)
		}
	}
	if _, _, err := bus.ParseVersion(""); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("ParseVersion of an empty text: %v", err)
	}
}

// FuzzDecode: for any metadata, Decode neither fails nor loses metadata. If the decoded message is encoded and decoded
// again, it does not change.
func FuzzDecode(f *testing.F) {
	for _, s := range [][3]string{
		{"call backup.list 2.0 deadline=2026-11-23T07:38:13.5Z beat=15s first=100ms x", "reply_to", "reply.x"},
		{"cast backup.start", "failures", "3"},
		{"cast backup.start 1.0 deadline=soon", "reason", "no"},
		{"what is this", "died_at", "never"},
		{"", "waited", "-1"},
	} {
		f.Add(s[0], s[1], s[2])
	}
	f.Fuzz(func(t *testing.T, envelope, key, value string) {
		m := bus.Decode("id", maps.All(map[string]string{"rpc": envelope, key: value}), nil)
		first := maps.Collect(m.Metadata())
		again := maps.Collect(bus.Decode("id", maps.All(first), nil).Metadata())
		if diff := cmp.Diff(first, again); diff != "" {
			t.Errorf("read again (-first +again):\n%s", diff)
		}
		if m.Malformed != nil && key != "rpc" && first["rpc"] != envelope {
			t.Errorf("the envelope %q of a malformed message was written as %q", envelope, first["rpc"])
		}
	})
}

// TestOutcome: each error of Publish has an outcome.
func TestOutcome(t *testing.T) {
	t.Parallel()
	for want, list := range map[bus.Outcome][]error{
		bus.Confirmed:  {nil},
		bus.Unroutable: {bus.ErrNoConsumer, fmt.Errorf("queue x: %w", bus.ErrNoConsumer)},
		bus.Unknown:    {fault.New(fault.Unknown, "the connection was lost: %w", context.DeadlineExceeded)},
		bus.Refused:    {bus.ErrClosed, bus.ErrTooLarge, bus.ErrNotStarted, fault.New(fault.Unavailable, "away"), context.Canceled, errors.New("?")},
	} {
		for _, err := range list {
			if got := bus.OutcomeOf(err); got != want {
				t.Errorf("outcome of %v is %d, want %d", err, got, want)
			}
		}
	}
}

// acknowledgements records the arguments of EndDelivery.
type acknowledgements []bool

func (s *acknowledgements) EndDelivery(ack bool) error { *s = append(*s, ack); return nil }

// TestDelivery: only the first Ack or Nack of a delivery has an effect.
func TestDelivery(t *testing.T) {
	t.Parallel()
	var got acknowledgements
	d := bus.NewDelivery(&bus.Message{Failures: 2, Redeliveries: 1}, true, &got)
	if n := d.Attempt(); n != 5 {
		t.Errorf("attempt %d, want 5", n)
	}
	for _, f := range []func() error{d.Nack, d.Ack, d.Nack} {
		if err := f(); err != nil {
			t.Error(err)
		}
	}
	if diff := cmp.Diff(acknowledgements{false}, got); diff != "" {
		t.Errorf("calls of EndDelivery (-want +got):\n%s", diff)
	}
	if err := bus.NewDelivery(&bus.Message{}, false, nil).Ack(); err != nil {
		t.Errorf("Ack of a delivery without an Acknowledger: %v", err)
	}
}

// TestCheck: CheckMessage returns Invalid for a message that a broker cannot carry.
func TestCheck(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 300)
	for what, m := range map[string]*bus.Message{
		"id":       {ID: long},
		"reply to": {ReplyTo: long},
		"key":      {Header: map[string]string{long: ""}},
		"metadata": {Header: map[string]string{"k": strings.Repeat("x", 64<<10)}},
		"payload":  {Payload: make([]byte, 1<<20)},
	} {
		if err := bus.CheckMessage(m, 1<<20); !errors.Is(err, fault.Invalid) {
			t.Errorf("%s: %v, want Invalid", what, err)
		}
	}
	if err := bus.CheckMessage(&bus.Message{Dead: &bus.Dead{Reason: "no"}, Payload: make([]byte, 1<<20)}, 1<<20); err != nil {
		t.Errorf("a dead letter above the limit: %v", err)
	}
}
