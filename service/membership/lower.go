package membership

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/version"
)

// In this file, a member counts if RPC clients must limit themselves to its versions, see Member.Counts.

const (
	// clientsRead is the default of MemberConfig.LowerWait: 10 s for rpc.ClientConfig.CapsEvery, 1 s during which rpccaps repeats an answer,
	// and 1 s for the read.
	clientsRead = 12 * time.Second
	// keepReplaced is how long a row keeps replaced versions. maxReplaced is the maximum number of such entries in a row; a row keeps fewer
	// entries if their JSON would exceed maxServes bytes.
	keepReplaced, maxReplaced = 5 * time.Minute, 8
	// withdrawTimeout bounds the withdrawal of an announcement after a canceled wait.
	withdrawTimeout = 5 * time.Second
)

// replaced is a set of versions that a member no longer serves. Until is the time when the member last counted with these versions.
type replaced struct {
	Interfaces map[string][]string `json:"interfaces"`
	Until      time.Time           `json:"until"`
}

// after returns s with the history of the replaced member. The parameter prev is the replaced member; nil if s replaces no member.
func (s serves) after(prev *Member, downAfter time.Duration, now time.Time) serves {
	s.Since = now
	if prev == nil {
		return s
	}
	if prev.ForcedDown {
		s.Ended = now // the member ceased to count now or earlier, because an operator has forced it down
	}
	for _, b := range prev.serves.Before {
		if now.Sub(b.Until) < keepReplaced {
			s.Before = append(s.Before, b)
		}
	}
	switch {
	case !includesVersions(s.Interfaces, prev.Interfaces):
		s.Before = pruneReplaced(append(s.Before, replaced{prev.Interfaces, prev.lastCounted(downAfter, now)}))
	case prev.Counts() && len(prev.Interfaces) == len(s.Interfaces):
		s.Since = prev.since()
	}
	return s
}

// keepHistory copies the versions of a removed member into the row of another member, because ServeDelay still needs these versions. If no
// other member reports versions, the versions of the removed member are lost.
func (r *Registry) keepHistory(ctx context.Context, tx *sqlx.Tx, removed *Member) error {
	now := removed.SeenAt.Add(removed.age)
	history := slices.DeleteFunc(append([]replaced{{removed.Interfaces, removed.lastCounted(r.cfg.DownAfter, now)}}, removed.serves.Before...), func(b replaced) bool {
		return len(b.Interfaces) == 0 || now.Sub(b.Until) >= keepReplaced
	})
	if len(history) == 0 {
		return nil
	}
	list, err := r.list(ctx, tx, `WHERE serves <> '' ORDER BY kind, host`)
	at := slices.IndexFunc(list, func(m Member) bool { return !m.serves.JoinedAt.IsZero() })
	if err != nil || at < 0 {
		return err
	}
	kind, host := list[at].Kind, list[at].Host
	list, err = r.list(ctx, tx, `WHERE kind = ? AND host = ? FOR UPDATE`, kind, host)
	if err != nil || len(list) == 0 || list[0].serves.JoinedAt.IsZero() {
		return err
	}
	s := list[0].serves
	s.Before = pruneReplaced(append(history, s.Before...))
	return r.writeServes(ctx, tx, kind, host, s)
}

// pruneReplaced returns the entries that ServeDelay needs, the latest first. It leaves out an entry if a later entry includes all its versions.
func pruneReplaced(list []replaced) (out []replaced) {
	slices.SortStableFunc(list, func(a, b replaced) int { return b.Until.Compare(a.Until) })
	for _, b := range list {
		if !slices.ContainsFunc(out, func(later replaced) bool { return includesVersions(later.Interfaces, b.Interfaces) }) {
			out = append(out, b)
		}
	}
	return out[:min(len(out), maxReplaced)]
}

// includesVersions reports whether own includes each version in other, for each interface.
func includesVersions(own, other map[string][]string) bool {
	for name, versions := range other {
		if exceedsVersions(versions, own[name]) {
			return false
		}
	}
	return true
}

// since returns the start of the period in which the member has counted with versions that are not higher than its present versions.
func (m Member) since() time.Time {
	if m.serves.Since.IsZero() { // written by the previous release
		return m.JoinedAt
	}
	return m.serves.Since
}

// forced returns the serves value to store when an operator forces the member down or undoes this. It sets the time at which the member ceases,
// or begins again, to count. The process itself may serve all the time.
func (m Member) forced(down bool) serves {
	s, now := m.serves, m.SeenAt.Add(m.age)
	counted := m.Counts()
	m.ForcedDown = down
	switch {
	case counted:
		s.Ended = now
	case m.Counts():
		s.Since, s.Ended = now, time.Time{}
	}
	return s
}

// lastCounted returns the time until which the member has counted. The previous release does not store the time of ForceDown. For such a
// member, lastCounted returns the last heartbeat plus DownAfter, which is the latest time at which the member can have been up.
func (m Member) lastCounted(downAfter time.Duration, now time.Time) time.Time {
	switch {
	case m.Counts():
		return now
	case !m.serves.Ended.IsZero():
		return m.serves.Ended
	}
	return m.SeenAt.Add(downAfter)
}

// ServeDelay returns how long the process of a member must wait before it serves, after it was announced or has joined. The delay is 0 unless
// an RPC client may still send messages that the process does not know. A client may do so if both are true: (1) a member with higher versions
// has counted within the window (see [Member.Counts]); (2) no member with versions as low as those of the process has counted for the whole
// window. A process that starts or restarts with the versions of the other members, or with higher versions, does not wait. If window is 0, ServeDelay
// uses the default of MemberConfig.LowerWait. Errors: those of [Registry.List].
func (r *Registry) ServeDelay(ctx context.Context, kind, host string, window time.Duration) (time.Duration, error) {
	window = cmp.Or(window, clientsRead)
	m, err := r.Get(ctx, kind, host)
	if errors.Is(err, fault.NotFound) {
		return 0, nil
	} else if err != nil {
		return 0, err
	}
	if may, err := r.mayLower(ctx, m, window); err != nil || !may {
		return 0, err
	}
	list, err := r.List(ctx, "")
	if err != nil {
		return 0, err
	}
	return r.delay(list, m, window), nil
}

// mayLower reports whether another member has counted in the last window with versions that exceed those of m. To keep the query small,
// mayLower skips members that have, and always had, the versions of m. In a large cloud these are almost all members, and every host runs this
// query when it starts.
func (r *Registry) mayLower(ctx context.Context, m *Member, window time.Duration) (bool, error) {
	same, err := json.Marshal(m.Interfaces)
	if err != nil {
		return false, err
	}
	begin := `{"interfaces":` + string(same) + `,` // interfaces is the first field of serves
	others, err := r.list(ctx, r.cfg.DB, `WHERE serves <> '' AND (SUBSTR(serves, 1, ?) <> ? OR INSTR(serves, '"before"') > 0)`, utf8.RuneCountInString(begin), begin)
	if err != nil {
		return false, err
	}
	return r.delay(others, m, window) > 0, nil
}

// delay returns how long m must wait because of the members in list.
func (r *Registry) delay(list []Member, m *Member, window time.Duration) (delay time.Duration) {
	now := m.SeenAt.Add(m.age) // the time now in the database's clock
	for name, own := range m.Interfaces {
		if since, lowered := r.lowers(list, name, own, now, window); lowered {
			delay = max(delay, since.Add(window).Sub(now))
		}
	}
	return min(delay, window)
}

// lowers compares own, the versions of one interface in a new process, with those of the members. The result lowered reports whether a member
// has counted in the last window with versions that exceed own. The result since is the start of the longest period in which a member has
// counted, until now, with versions that do not exceed own. Without such a member, since is now.
func (r *Registry) lowers(list []Member, name string, own []string, now time.Time, window time.Duration) (since time.Time, lowered bool) {
	since = now
	for _, m := range list {
		if versions := m.Interfaces[name]; m.Counts() && len(versions) > 0 && !exceedsVersions(versions, own) && m.since().Before(since) {
			since = m.since()
		}
		for _, had := range append([]replaced{{m.Interfaces, m.lastCounted(r.cfg.DownAfter, now)}}, m.serves.Before...) {
			lowered = lowered || now.Sub(had.Until) < window && exceedsVersions(had.Interfaces[name], own)
		}
	}
	return since, lowered
}

// exceedsVersions reports whether a process that serves own lacks one of the versions. It ignores a version that does not have the form
// MAJOR.MINOR, because no client sends such a version.
func exceedsVersions(versions, own []string) bool {
	return slices.ContainsFunc(versions, func(v string) bool {
		major, minor, ok := version.Parse(v)
		return ok && !slices.ContainsFunc(own, func(o string) bool {
			ownMajor, ownMinor, ok := version.Parse(o)
			return ok && ownMajor == major && ownMinor >= minor
		})
	})
}

// awaitClients waits as long as ServeDelay says. If ctx ends first, it returns the error of ctx.
func (p *MemberPart) awaitClients(ctx context.Context) error {
	for logged := false; ; logged = true {
		delay, err := p.r.ServeDelay(ctx, p.cfg.Kind, p.cfg.Host, p.cfg.LowerWait)
		if err != nil || delay <= 0 {
			return err
		}
		if !logged {
			p.cfg.Logger.WarnContext(ctx, "waiting before serving: RPC clients must learn the lower versions of this process",
				"member", p.cfg.Kind, "host", p.cfg.Host, "wait", delay)
		}
		t := time.NewTimer(delay)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
	}
}

// Start announces the member, and waits until the clients know the member's versions.
func (a announcement) Start(ctx context.Context) error {
	err := a.p.r.announce(ctx, a.p.cfg.Self, a.p.process)
	if err == nil {
		err = a.p.awaitClients(ctx)
	} else if ctx.Err() == nil {
		return err
	}
	if a.p.announced = err == nil; err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), withdrawTimeout)
	defer cancel()
	return errors.Join(err, a.Stop(ctx)) // if ctx has ended, the announcement may have been written
}
