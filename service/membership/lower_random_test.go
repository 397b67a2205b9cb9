package membership_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/service/membership"
)

// TestServeDelayOfHistories: in random histories of three members, a starting process waits until no RPC client can still have caps
// above the process's version. A client may have the caps of any time within the last window. These caps are the lowest version of the
// members that counted at that time.
func TestServeDelayOfHistories(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	dbtest.Each(t, migrations, func(t *testing.T, d *sqlx.DB) {
		for i := range uint64(25) {
			h := &history{T: t, d: d, r: membership.New(membership.Config{DB: d}), rnd: rand.New(rand.NewPCG(seed, i))}
			if h.run(); t.Failed() {
				t.Fatalf("history %d: %q", i, h.events)
			}
		}
	})
}

// history is a history of members. Its clock is the field now. The method pass lets time pass: it makes all times of the table older.
type history struct {
	*testing.T

	d      *sqlx.DB
	r      *membership.Registry
	rnd    *rand.Rand
	now    time.Duration
	hosts  [3]struct{ exists, counts, forced, beats bool }
	minors [3]int
	caps   []capsSince // the caps of clients that read them at these times
	events []string
}

type capsSince struct {
	at    time.Duration
	minor int
}

const historyWindow = 12 * time.Second

func (h *history) run() {
	_, err := h.d.ExecContext(h.Context(), `DELETE FROM members`)
	h.did(err, "begin")
	h.did(h.r.Join(h.Context(), membership.Self{Kind: "other", Host: "keeper", Interfaces: map[string][]string{"other": {"1.0"}}}), "join keeper")
	for range 16 {
		at := h.rnd.IntN(len(h.hosts))
		m, host := &h.hosts[at], fmt.Sprintf("h%d", at)
		op := h.rnd.IntN(13)
		switch {
		case op < 4:
			h.start(at, host, h.rnd.IntN(4))
		case op < 6 && m.exists:
			h.did(h.r.Leave(h.Context(), "worker", host, ""), "leave %s", host)
			m.counts, m.beats = false, false
		case op == 6 && m.exists:
			h.did(nil, "SIGKILL %s", host)
			m.beats = false
		case op == 7 && m.exists:
			h.did(errors.Join(h.r.ForceDown(h.Context(), "worker", host, true), h.r.Remove(h.Context(), "worker", host)), "remove %s", host)
			m.exists, m.counts, m.beats, m.forced = false, false, false, false
		case op < 10 && m.exists:
			m.forced = !m.forced
			h.did(h.r.ForceDown(h.Context(), "worker", host, m.forced), "force down %s: %v", host, m.forced)
		default:
			h.pass([]time.Duration{time.Second, 3 * time.Second, 7 * time.Second, 15 * time.Second, 90 * time.Second}[h.rnd.IntN(5)])
		}
		h.note()
	}
}

// note records the caps that a client would read now.
func (h *history) note() {
	lowest := -1
	for i, m := range h.hosts {
		if m.counts && !m.forced && (lowest < 0 || h.minors[i] < lowest) {
			lowest = h.minors[i]
		}
	}
	h.caps = append(h.caps, capsSince{h.now, max(lowest, 0)})
}

// start announces a process, and compares its wait with the caps that clients may have.
func (h *history) start(at int, host string, minor int) {
	var need time.Duration
	for i, c := range h.caps {
		end := h.now
		if i+1 < len(h.caps) {
			end = h.caps[i+1].at
		}
		if c.minor > minor {
			need = max(need, end+historyWindow-h.now)
		}
	}
	self := serving(host, fmt.Sprintf("1.%d", minor))
	h.did(h.r.Announce(h.Context(), self), "announce %s 1.%d", host, minor)
	m := &h.hosts[at]
	m.exists, m.counts, m.beats, h.minors[at] = true, true, true, minor
	if m.forced {
		return // it does not count
	}
	got, err := h.r.ServeDelay(h.Context(), "worker", host, historyWindow)
	if err != nil || got < need-time.Second {
		h.Errorf("the process waits %v, %v; a client may send a higher version for %v", got, err, need)
	}
	if h.rnd.IntN(2) == 0 {
		h.did(h.r.Join(h.Context(), self), "join %s", host)
	}
}

func (h *history) did(err error, format string, args ...any) {
	h.Helper()
	h.events = append(h.events, fmt.Sprintf("%v ", h.now)+fmt.Sprintf(format, args...))
	if err != nil {
		h.Fatal(err, h.events)
	}
}

// pass lets time pass.
func (h *history) pass(by time.Duration) {
	h.Helper()
	h.now += by
	silent := map[string]bool{}
	for i, m := range h.hosts {
		silent[fmt.Sprintf("h%d", i)] = !m.beats
	}
	ageMembers(h.T, h.d, by, silent)
}

// ageMembers makes all times in the table older. Members that are not in silent have just sent a heartbeat.
func ageMembers(t *testing.T, d *sqlx.DB, by time.Duration, silent map[string]bool) {
	t.Helper()
	var rows []struct {
		ID     string
		Host   string
		Serves string
		Joined time.Time `db:"joined_at"`
		Seen   time.Time `db:"seen_at"`
	}
	if err := d.SelectContext(t.Context(), &rows, `SELECT id, host, serves, joined_at, seen_at FROM members`); err != nil {
		t.Fatal(err)
	}
	for _, row := range rows {
		var report any
		if err := json.Unmarshal([]byte(row.Serves), &report); err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(olderTimes(report, by))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.ExecContext(t.Context(), `UPDATE members SET serves = ?, joined_at = ?, seen_at = ? WHERE id = ?`, string(text), row.Joined.Add(-by), row.Seen.Add(-by), row.ID); err != nil {
			t.Fatal(err)
		}
		if silent[row.Host] {
			continue
		}
		if _, err := d.ExecContext(t.Context(), `UPDATE members SET seen_at = UTC_TIMESTAMP(6) WHERE id = ?`, row.ID); err != nil {
			t.Fatal(err)
		}
	}
}

// olderTimes returns a JSON value in which all times are older.
func olderTimes(v any, by time.Duration) any {
	switch v := v.(type) {
	case map[string]any:
		for k := range v {
			v[k] = olderTimes(v[k], by)
		}
	case []any:
		for i := range v {
			v[i] = olderTimes(v[i], by)
		}
	case string:
		if at, err := time.Parse(time.RFC3339Nano, v); err == nil {
			return at.Add(-by).Format(time.RFC3339Nano)
		}
	}
	return v
}
