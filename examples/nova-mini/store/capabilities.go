package store

import (
	"context"
	"encoding/json"
	"errors"
	"slices"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/fault"
)

// checkCapability returns ErrNotSupported if the driver of a host does not have a capability. If the database does not have the driver's
// capabilities, checkCapability returns nil: the compute service checks the capability later.
func (s *Store) checkCapability(ctx context.Context, tx *sqlx.Tx, host string, need driver.Capability) error {
	if need == "" {
		return nil
	}
	var raw *string
	err := db.Error(tx.GetContext(ctx, &raw, `SELECT capabilities FROM hosts WHERE name = ?`, host))
	if errors.Is(err, fault.NotFound) || err == nil && raw == nil {
		return nil
	}
	var has []driver.Capability
	if err == nil {
		err = json.Unmarshal([]byte(*raw), &has)
	}
	if err != nil || slices.Contains(has, need) {
		return err
	}
	return ErrNotSupported
}

// HasCapability reports whether the driver of at least one host has a capability.
func (s *Store) HasCapability(ctx context.Context, c driver.Capability) (bool, error) {
	var lists []db.JSON[[]driver.Capability]
	if err := s.db.SelectContext(ctx, &lists, `SELECT DISTINCT capabilities FROM hosts WHERE capabilities IS NOT NULL`); err != nil {
		return false, db.Error(err)
	}
	return slices.ContainsFunc(lists, func(l db.JSON[[]driver.Capability]) bool { return slices.Contains(l.V, c) }), nil
}

// ErrNotSupported means that the driver of the server's host does not support an action. The text is Nova's.
var ErrNotSupported = fault.Sentinel(fault.Unimplemented, "NotSupported", "The requested functionality is not supported.")
