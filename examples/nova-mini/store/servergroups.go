package store

import (
	"context"
	"errors"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/scheduler/placement"
	"github.com/armature-go/armature/service/quota"
)

// ServerGroup is a group of servers. The policy of the group says which of the servers should share a host. After the creation
// of a group only its members change.
type ServerGroup struct {
	ID        string           `db:"id"`
	Name      string           `db:"name"`
	ProjectID string           `db:"project_id"`
	UserID    string           `db:"user_id"`
	Policy    placement.Policy `db:"policy"`
	// MaxPerHost is the maximum number of members on one host, for the policy anti-affinity. 0: the client has not set this rule, and the maximum is 1.
	MaxPerHost int       `db:"max_per_host"`
	CreatedAt  time.Time `db:"created_at"`
	// Members are the IDs of the servers in the group that are not deleted, the oldest first. They include servers without a host. Members is read only.
	Members []string `db:"-"`
}

// NoServerGroup returns the error NotFound for a server group that does not exist.
func NoServerGroup(id string) error {
	return fault.New(fault.NotFound, "Instance group %s could not be found.", id)
}

const selectGroups = `SELECT id, name, project_id, user_id, policy, max_per_host, created_at FROM server_groups`

// ServerGroups returns a page of server groups, the oldest first. The page begins after the first offset groups, and has at most limit
// groups. The parameter named in selects the projects of the groups. The parameter named of selects the projects whose servers are listed as members.
func (s *Store) ServerGroups(ctx context.Context, in, of Projects, limit, offset int) ([]ServerGroup, error) {
	query, args := selectGroups, []any(nil)
	if text, more := in.where(); text != "" {
		query, args = query+` WHERE `+text, more
	}
	list := []ServerGroup{}
	if err := s.db.SelectContext(ctx, &list, query+` ORDER BY created_at, id LIMIT ? OFFSET ?`, append(args, limit, offset)...); err != nil {
		return nil, db.Error(err)
	}
	return list, s.readMembers(ctx, of, list)
}

// ServerGroup returns one server group. The parameter named of selects the projects whose servers are listed as members. Errors: NotFound.
func (s *Store) ServerGroup(ctx context.Context, id string, of Projects) (*ServerGroup, error) {
	list := make([]ServerGroup, 1)
	if err := s.get(ctx, s.db, &list[0], NoServerGroup(id), selectGroups+` WHERE id = ?`, id); err != nil {
		return nil, err
	}
	return &list[0], s.readMembers(ctx, of, list)
}

// readMembers sets the members of groups.
func (s *Store) readMembers(ctx context.Context, of Projects, list []ServerGroup) error {
	if len(list) == 0 || of == (Projects{}) {
		return nil
	}
	at := map[string]*ServerGroup{}
	ids := make([]string, len(list))
	for i := range list {
		ids[i] = list[i].ID
		at[ids[i]] = &list[i]
	}
	query := `SELECT id, group_id FROM servers WHERE group_id IN (?)`
	args := []any{ids}
	if text, more := of.where(); text != "" {
		query, args = query+` AND `+text, append(args, more...)
	}
	query, args, err := sqlx.In(query+` ORDER BY created_at, launch_index, id`, args...)
	if err != nil {
		return err
	}
	var rows []struct {
		ID    string `db:"id"`
		Group string `db:"group_id"`
	}
	if err := s.db.SelectContext(ctx, &rows, query, args...); err != nil {
		return db.Error(err)
	}
	for _, r := range rows {
		g := at[r.Group]
		g.Members = append(g.Members, r.ID)
	}
	return nil
}

// consumer returns the name under which the quota counts the group.
func (g *ServerGroup) consumer() string { return "server_group/" + g.ID }

// CreateServerGroup adds a server group. It sets CreatedAt. Errors: Denied if the group has no project, or the project already has as many groups as
// [Limits] allow.
func (s *Store) CreateServerGroup(ctx context.Context, g *ServerGroup) error {
	if g.ProjectID == "" {
		return fault.New(fault.Denied, "A server group needs a project: use a token that is scoped to one.")
	}
	return s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
		g.CreatedAt = now
		_, err := tx.NamedExecContext(ctx, `INSERT INTO server_groups (id, name, project_id, user_id, policy, max_per_host, created_at)
			VALUES (:id, :name, :project_id, :user_id, :policy, :max_per_host, :created_at)`, g)
		if err != nil {
			return db.Error(err)
		}
		err = s.groups.Reserve(ctx, tx, quota.Claim{Consumer: g.consumer(), Project: g.ProjectID, Amounts: map[string]int64{ServerGroups: 1}})
		if errors.Is(err, quota.ErrExceeded) {
			return fault.New(fault.Denied, "Quota exceeded, too many server groups.")
		}
		return err
	})
}

// DeleteServerGroup removes a server group. The servers of the group stay on their hosts, and are in no group. Errors: NotFound.
func (s *Store) DeleteServerGroup(ctx context.Context, id string) error {
	return s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, _ time.Time) error {
		if err := db.ExecOne(ctx, tx, NoServerGroup(id), `DELETE FROM server_groups WHERE id = ?`, id); err != nil {
			return err
		}
		return s.groups.Release(ctx, tx, (&ServerGroup{ID: id}).consumer())
	})
}

// joinGroup checks that a new server may be in its group, with the other servers of the request. It locks the group until the end of the transaction,
// so that requests for one group run one after the other. The lock must be the first read of the transaction: then joinGroup also
// counts the servers of all transactions that have had the lock before. As in Nova, the limit is for the members of each user. Errors:
// Invalid, if the group does not exist; Denied, if the group would have more members of the user than [Limits] allow.
func (s *Store) joinGroup(ctx context.Context, tx *sqlx.Tx, id, user string, servers int) error {
	var locked string
	gone := fault.New(fault.Invalid, "%s", fault.From(NoServerGroup(id)).Msg)
	if err := s.get(ctx, tx, &locked, gone, `SELECT id FROM server_groups WHERE id = ? FOR UPDATE`, id); err != nil {
		return err
	}
	most := s.limits.Of(GroupMembers)
	if most == quota.Unlimited {
		return nil
	}
	var has int64
	if err := tx.GetContext(ctx, &has, `SELECT COUNT(*) FROM servers WHERE group_id = ? AND user_id = ?`, id, user); err != nil {
		return db.Error(err)
	}
	if has+int64(servers) > most {
		return fault.New(fault.Denied, "Quota exceeded, too many servers in group")
	}
	return nil
}

// PlacementGroup returns a server group in the form for claims. A deleted group has no policy.
func (s *Store) PlacementGroup(ctx context.Context, id string) (*placement.Group, error) {
	var g ServerGroup
	err := s.get(ctx, s.db, &g, NoServerGroup(id), selectGroups+` WHERE id = ?`, id)
	if errors.Is(err, fault.NotFound) {
		return &placement.Group{ID: id}, nil
	}
	return &placement.Group{ID: id, Policy: g.Policy, MaxPerHost: int64(g.MaxPerHost)}, err
}

// group returns the group for a claim of a server that stays on its host. The result has no policy, because such a claim does not check the policy.
func (s *Server) group() *placement.Group {
	if s.GroupID == nil {
		return nil
	}
	return &placement.Group{ID: *s.GroupID}
}
