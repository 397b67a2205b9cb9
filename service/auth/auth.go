// Package auth says who sends a request, for the Authenticate of package api: nobody in
// particular, the owner of a token in a file, or whoever Keystone says.
//
//	k, err := auth.NewKeystone(auth.KeystoneConfig{URL: "https://keystone:5000/v3", Username: "volume", ...})
//	mux := api.New(api.Config{Authenticate: k.Authenticate, Challenge: k.Challenge()})
//	app.Add("identity", k) // is ready when Keystone is
//
// A token never leaves this package: not in an error, not in a log, not in the request
// that goes to other processes.
package auth

import (
	"crypto/sha256"
	"net/http"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
)

// Header is the one that has the client's token.
const Header = "X-Auth-Token"

// None lets everybody in as who. It is for a service that nobody but its owner can reach.
func None(who reqctx.Request) func(*http.Request) (reqctx.Request, error) {
	return func(*http.Request) (reqctx.Request, error) { return who, nil }
}

// Static lets the owners of tokens in, and nobody else: Unauthenticated.
func Static(owners map[string]reqctx.Request) func(*http.Request) (reqctx.Request, error) {
	// By their sums, so that the time that a look takes tells nothing of a token.
	known := make(map[[32]byte]reqctx.Request, len(owners))
	for token, who := range owners {
		known[sha256.Sum256([]byte(token))] = who
	}
	return func(r *http.Request) (reqctx.Request, error) {
		token := r.Header.Get(Header)
		who, ok := known[sha256.Sum256([]byte(token))]
		if token == "" || !ok {
			return reqctx.Request{}, errWho
		}
		return who, nil
	}
}

// errWho is in Keystone's words.
var errWho = fault.Sentinel(fault.Unauthenticated, "Unauthorized", "The request you have made requires authentication.")
