package api

import (
	"cmp"
	"slices"
	"strings"
)

// Router registers routes. It is a [Mux], or a [Group] of a Mux.
type Router interface {
	// expand returns the Mux, and the route with the fields that it takes from its groups.
	expand(def Route) (*Mux, Route)
}

func (m *Mux) expand(def Route) (*Mux, Route) { return m, def }

// Group registers routes that have fields in common.
type Group struct {
	of  Router
	def Route
}

// NewGroup returns a group of routes. The parameter def has the fields that the routes have in common:
//
//   - Pattern is the beginning of the paths, without a method, such as "/v1/volumes". The pattern of a route has its method and
//     the rest of the path, such as "GET /{id}", or only the method, such as "POST".
//   - Min, Max, Rule, Status and Summary are those of each route that does not set its own.
//   - Errors are added to the Errors of each route.
//   - Public holds for all routes.
//
// NewGroup panics if def has other fields, or a Pattern with a method or without a / at its beginning, or if it gets no Router.
func NewGroup(of Router, def Route) *Group {
	if of == nil || of == (*Mux)(nil) || of == (*Group)(nil) {
		panic("api: the group " + def.Pattern + ": it has no Router: give it a Mux or a Group (registered at " + callerLine() + ")")
	}
	if def.Action != "" || def.Body != nil || def.Query != nil || def.List != nil || def.Idempotency != nil || def.Reply != nil || def.NoEffect != nil || def.Statuses != nil || def.SecretPath {
		panic("api: the group " + def.Pattern + ": Action, Body, Idempotency, List, NoEffect, Query, Reply, SecretPath and Statuses are for one route (registered at " + callerLine() + ")")
	}
	if strings.Contains(def.Pattern, " ") {
		panic("api: the group " + def.Pattern + ": its pattern is the beginning of a path, without a method (registered at " + callerLine() + ")")
	}
	if def.Pattern != "" && def.Pattern[0] != '/' {
		panic("api: the group " + def.Pattern + ": its pattern must begin with / (registered at " + callerLine() + ")")
	}
	return &Group{of, def}
}

func (g *Group) expand(def Route) (*Mux, Route) {
	method, path, _ := strings.Cut(def.Pattern, " ")
	if path != "" && path[0] != '/' { // the path would become a part of the last word of the group's path
		panic("api: " + def.Pattern + " in the group " + g.def.Pattern + ": the path of a route must begin with / (registered at " + callerLine() + ")")
	}
	def.Pattern = method + " " + g.def.Pattern + path
	def.Min, def.Max = cmp.Or(def.Min, g.def.Min), cmp.Or(def.Max, g.def.Max)
	def.Rule, def.Status, def.Summary = cmp.Or(def.Rule, g.def.Rule), cmp.Or(def.Status, g.def.Status), cmp.Or(def.Summary, g.def.Summary)
	def.Errors = slices.Concat(g.def.Errors, def.Errors)
	def.Public = def.Public || g.def.Public
	return g.of.expand(def)
}
