package main

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/internal/outage"
	"github.com/armature-go/armature/service/membership"
	"github.com/armature-go/armature/service/operation"
)

// missingServices logs that operations wait although no service of a kind is up that could continue them. The API service runs it: it accepts
// requests also without the other services. A missingServices is not safe for concurrent use.
type missingServices struct {
	members    *membership.Registry
	operations *operation.Store
	log        *slog.Logger

	kinds map[string]*missingKind
}

// missingKind is what the last checks have found about a kind of service.
type missingKind struct {
	missing bool // at the last check
	outage  outage.Log
}

// newMissingServices returns the check of an API service.
func newMissingServices(members *membership.Registry, operations *operation.Store, log *slog.Logger) *missingServices {
	m := &missingServices{members: members, operations: operations, log: log, kinds: map[string]*missingKind{}}
	for _, kind := range []string{store.ConductorBinary, store.SchedulerBinary, store.ComputeBinary} {
		m.kinds[kind] = new(missingKind)
	}
	return m
}

// check logs each kind of service that is missing in two checks, so that the restart of a service is not logged, and its return.
func (m *missingServices) check(ctx context.Context) error {
	open, err := m.operations.CountOpen(ctx)
	if err != nil {
		return err
	}
	waiting := 0
	for _, o := range open {
		waiting += o.Count
	}
	list, err := m.members.List(ctx, "")
	if err != nil {
		return err
	}
	up := map[string]bool{}
	for _, one := range list {
		up[one.Kind] = up[one.Kind] || one.Up
	}
	for kind, k := range m.kinds {
		missing := !up[kind]
		switch {
		case kind == store.ComputeBinary && !up[store.ConductorBinary]: // a compute service sends its heartbeats to a conductor, so nothing is known
		case !missing:
			k.outage.Note(ctx, m.log, slog.LevelWarn, "search for a running service", nil, false, "kind", kind)
		case k.missing && waiting > 0:
			err := fmt.Errorf("no %s is up, so operations on servers wait: start one; nova-mini member list shows the services that were up, and nova-mini operation list the operations", kind)
			k.outage.Note(ctx, m.log, slog.LevelWarn, "search for a running service", err, false, "kind", kind, "operations", waiting)
		}
		k.missing = missing
	}
	return nil
}
