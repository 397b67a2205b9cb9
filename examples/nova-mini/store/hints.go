package store

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/fault"
)

// Names of scheduler hints whose values are ids of servers.
const (
	SameHost      = "same_host"
	DifferentHost = "different_host"
)

// HintedHosts returns the hosts of the servers that a hint of a server names, each once. The parameter hint is [SameHost] or [DifferentHost]. Given reports
// whether the server has the hint with at least one value. As in Nova, a hint may name servers of all projects, and servers that do not exist or are on no
// host have no effect on the list. Errors: NotFound if the server does not exist; those of the database.
func (s *Store) HintedHosts(ctx context.Context, server, hint string) (hosts []string, given bool, err error) {
	var raw *string
	if err := s.get(ctx, s.db, &raw, NoServer(server), `SELECT scheduler_hints FROM servers WHERE id = ?`, server); err != nil || raw == nil {
		return nil, false, err
	}
	var hints map[string][]any
	if err := json.Unmarshal([]byte(*raw), &hints); err != nil {
		return nil, false, fault.New(fault.Internal, "read the scheduler hints of server %s: %w", server, err)
	}
	if len(hints[hint]) == 0 {
		return nil, false, nil
	}
	query, args, err := sqlx.In(`SELECT DISTINCT host FROM servers WHERE host IS NOT NULL AND id IN (?) ORDER BY host`, hintTexts(hints[hint]))
	if err != nil {
		return nil, true, err
	}
	if err := s.db.SelectContext(ctx, &hosts, query, args...); err != nil {
		return nil, true, fmt.Errorf("read the hosts of the hint %s of server %s: %w", hint, server, db.Error(err))
	}
	return hosts, true, nil
}

// hintTexts returns the values as texts. A value that is not a text is the id of no server.
func hintTexts(values []any) []string {
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = fmt.Sprint(v)
	}
	return out
}
