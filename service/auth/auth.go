// Package auth finds the identity of the client that sends a request. It has three functions for the
// Authenticate option of package api: [None] gives all clients one identity, [Static] has a table of
// tokens, and [Keystone] asks OpenStack's identity service.
//
//	k, err := auth.NewKeystone(auth.KeystoneConfig{URL: "https://keystone:5000/v3", Username: "volume", ...})
//	mux := api.New(api.Config{Authenticate: k.Authenticate, Challenge: k.Challenge()})
//	app.Add("identity", k) // the service is ready when Keystone answers
//
// A token never leaves this package: no error, no log line and no [reqctx.Request] contains one.
// Package policy decides what an identity may do.
package auth

import (
	"crypto/sha256"
	"net/http"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
)

// Header is the name of the HTTP header with the client's token.
const Header = "X-Auth-Token"

// None returns a function that accepts each request, with or without a token, and returns identity. The
// function never fails, and is safe for concurrent use. Use it only for a service that no other user can
// reach, such as one on a developer's machine.
func None(identity reqctx.Request) func(*http.Request) (reqctx.Request, error) {
	return func(*http.Request) (reqctx.Request, error) { return identity, nil }
}

// Static returns a function that accepts a request if its token, in [Header], is a key of identities,
// and returns the token's identity. All other requests fail with Unauthenticated: no token, an unknown
// token, and the empty token, even if it is a key. Static copies the map. The function does not block
// and is safe for concurrent use.
func Static(identities map[string]reqctx.Request) func(*http.Request) (reqctx.Request, error) {
	// The keys are hashes of the tokens, so that the time of a lookup reveals nothing about a token.
	known := make(map[[32]byte]reqctx.Request, len(identities))
	for token, identity := range identities {
		known[sha256.Sum256([]byte(token))] = identity
	}
	return func(r *http.Request) (reqctx.Request, error) {
		token := r.Header.Get(Header)
		identity, ok := known[sha256.Sum256([]byte(token))]
		if token == "" || !ok {
			return reqctx.Request{}, errUnauthenticated
		}
		return identity, nil
	}
}

// errUnauthenticated has Keystone's own text, which clients of OpenStack know.
var errUnauthenticated = fault.Sentinel(fault.Unauthenticated, "Unauthorized", "The request you have made requires authentication.")
