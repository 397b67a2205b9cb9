package membership

import (
	"cmp"
	"context"
	"encoding/json"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service"
)

// serves has what the process of a member serves. Its JSON is stored in the column serves. Readers ignore unknown fields.
type serves struct {
	// Interfaces is Self.Interfaces.
	Interfaces map[string][]string `json:"interfaces"`
	// JoinedAt is the member's JoinedAt when this value was written. If the row of the member has another JoinedAt, a process of a
	// release without this column has joined since.
	JoinedAt time.Time `json:"joined_at"`
	// Announced means that the process serves, or will serve soon. Joined means that the process has joined, and has not only announced
	// itself.
	Announced bool `json:"announced,omitempty"`
	Joined    bool `json:"joined,omitempty"`
	// Process is a text that is unique to the start of a MemberPart.
	Process string `json:"process,omitempty"`
	// Since is the time since which the member has counted with at most these versions. Ended is when the member has ceased to count.
	Since time.Time `json:"since,omitzero"`
	Ended time.Time `json:"ended,omitzero"`
	// Before has the versions that were replaced by lower versions, and the versions of removed members, the newest first.
	Before []replaced `json:"before,omitempty"`
}

// maxServes is the maximum size of serves as JSON, in bytes.
const maxServes = 4000

// maxInterfaces is the maximum size of Self.Interfaces as JSON, in bytes. A row also has the versions of earlier processes.
const maxInterfaces = 1200

// text returns the form in the database. The text is empty if a service reports no versions and is not announced.
func (s serves) text() (string, error) {
	if s.Interfaces == nil && s.Process == "" {
		return "", nil
	}
	raw, err := json.Marshal(s.Interfaces)
	if err == nil && len(raw) > maxInterfaces {
		err = fault.New(fault.Invalid, "the versions of a member's interfaces are %d bytes of JSON, more than %d", len(raw), maxInterfaces)
	}
	if err != nil {
		return "", err
	}
	for raw, err = json.Marshal(s); err == nil && len(raw) > maxServes && len(s.Before) > 0; raw, err = json.Marshal(s) {
		s.Before = s.Before[:len(s.Before)-1]
	}
	return string(raw), err
}

// parseServes reads the result of text. It returns the zero value for a text that cannot be read, or that is about an earlier start.
func parseServes(text string, joinedAt time.Time) (s serves) {
	if text == "" || json.Unmarshal([]byte(text), &s) != nil || !s.JoinedAt.Equal(joinedAt) {
		return serves{}
	}
	return s
}

// Announce records the versions of a service before the service serves, so that other services send it no message that it does not know.
// From then on the member counts, see [Member.Counts], although it is not up before [Registry.Join]. [MemberPart.Announcement] calls
// Announce. If Self has an Instance, [Registry.Leave] with the ID of the Instance ends the announcement. Errors: those of Registry.Join.
func (r *Registry) Announce(ctx context.Context, s Self) error {
	return r.announce(ctx, s, cmp.Or(s.Instance.ID, uuid.NewString()))
}

func (r *Registry) announce(ctx context.Context, s Self, process string) error {
	return r.enter(ctx, s, func(ctx context.Context, tx *sqlx.Tx, e entry) error {
		now := serves{Interfaces: s.Interfaces, JoinedAt: e.now, Announced: true, Process: process}.after(e.is, r.cfg.DownAfter, e.now)
		if e.is == nil {
			return r.insert(ctx, tx, s, e, now, true)
		}
		now.JoinedAt = e.is.JoinedAt
		text, err := now.text()
		if err != nil {
			return err
		}
		_, err = db.Exec(ctx, tx, `UPDATE members SET version = ?, serves = ? WHERE kind = ? AND host = ?`, s.Version, text, s.Kind, s.Host)
		return err
	})
}

// withdraw ends the announcement of this process. It changes nothing if another process has announced itself since.
func (r *Registry) withdraw(ctx context.Context, kind, host, process string) error {
	return db.Tx(ctx, r.cfg.DB, func(ctx context.Context, tx *sqlx.Tx) error {
		list, err := r.list(ctx, tx, `WHERE kind = ? AND host = ? FOR UPDATE`, kind, host)
		if err != nil || len(list) == 0 || list[0].serves.Process != process {
			return err
		}
		return r.writeServes(ctx, tx, kind, host, list[0].withdrawn())
	})
}

// withdrawn returns the serves value of the member after the end of its announcement.
func (m Member) withdrawn() serves {
	s := m.serves
	s.Announced = false
	if m.Departed {
		s.Ended = m.SeenAt.Add(m.age)
	}
	return s
}

func (r *Registry) writeServes(ctx context.Context, tx *sqlx.Tx, kind, host string, s serves) error {
	text, err := s.text()
	if err == nil {
		_, err = db.Exec(ctx, tx, `UPDATE members SET serves = ? WHERE kind = ? AND host = ?`, text, kind, host)
	}
	return err
}

// Announcement returns a part that records the versions of the service before the service serves, and withdraws them after it has served.
// Add it before the parts that serve. Add the MemberPart itself after these parts:
//
//	app.Add("versions", member.Announcement())
//	app.Add("rpc", server)
//	app.Add("member", member)
//
// Between the start of the announcement and the start of the member, and between their stops, the member is down, but its versions count.
// If the versions of the process are lower than those of another process that has run, Start logs one WARN and blocks for up to
// MemberConfig.LowerWait, until the RPC clients know the versions of the process, see [Registry.ServeDelay]. If ctx ends first, Start
// withdraws the announcement and returns the error of ctx. Other errors: those of [Registry.Join].
func (p *MemberPart) Announcement() service.Part { return announcement{p} }

type announcement struct{ p *MemberPart }

func (a announcement) Stop(ctx context.Context) error {
	return a.p.r.withdraw(ctx, a.p.cfg.Kind, a.p.cfg.Host, a.p.process)
}
