package api

import (
	"context"
	"log/slog"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/api"
	"github.com/armature-go/armature/service/auth"
)

// OpenAPI returns the OpenAPI 3.1 document of the API in a microversion. Errors: Invalid if version is not of the form 2.N,
// or if the API does not support it.
func OpenAPI(version string) (map[string]any, error) {
	v, err := api.ParseVersion(version)
	if err != nil {
		return nil, err
	}
	low, _ := api.ParseVersion(minVersion)
	high, _ := api.ParseVersion(maxVersion)
	if !v.AtLeast(low.Major, low.Minor) || !high.AtLeast(v.Major, v.Minor) {
		return nil, fault.New(fault.Invalid, "microversion %s is not supported: the lowest is %s, the highest is %s", v, minVersion, maxVersion)
	}
	return documentedMux().OpenAPI(api.About{
		Title: "nova-mini", Version: v.String(), Description: "The part of the Nova v2.1 REST API that nova-mini implements.",
	}, v), nil
}

// History returns the changes of the routes and their types, by microversion.
func History() []api.Change { return documentedMux().History() }

// documentedMux returns a mux with all routes and without a store. It is only for documents: the routes must not be called.
func documentedMux() *api.Mux {
	m := api.New(HTTP(api.Config{
		Authenticate: auth.None(Administrator), Enforce: func(context.Context, string, map[string]any) error { return nil }, Logger: slog.New(slog.DiscardHandler),
	}))
	(&server{mux: m}).routes()
	return m
}
