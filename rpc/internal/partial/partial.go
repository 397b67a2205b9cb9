// Package partial lets a test start a server that lacks handlers. Only package rpctest calls Allow, so no production program can.
package partial

import "context"

type key struct{}

// Allow returns a context with which rpc.Server.Start starts a server although methods of its interface have no handler.
func Allow(ctx context.Context) context.Context { return context.WithValue(ctx, key{}, true) }

// Allowed reports whether ctx is a context of [Allow].
func Allowed(ctx context.Context) bool { return ctx.Value(key{}) != nil }
