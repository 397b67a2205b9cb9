package auth_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service/api"
	"github.com/armature-go/armature/service/auth"
)

// newRequest returns a client's request with a token, or without one if token is empty.
func newRequest(path, token string) *http.Request {
	r := httptest.NewRequestWithContext(context.Background(), http.MethodGet, path, http.NoBody)
	if token != "" {
		r.Header.Set(auth.Header, token)
	}
	return r
}

// None is for a service on a developer's machine: each request has the same identity.
func ExampleNone() {
	authenticate := auth.None(reqctx.Request{UserID: "developer", ProjectID: "demo", Roles: []string{"admin"}})

	identity, err := authenticate(newRequest("/volumes", ""))
	fmt.Println(identity.UserID, identity.ProjectID, identity.Roles, err)
	// Output: developer demo [admin] <nil>
}

// Static is for tests and small installations: a table maps each token to an identity.
func ExampleStatic() {
	authenticate := auth.Static(map[string]reqctx.Request{
		"s3cret": {UserID: "ada", ProjectID: "p1", Roles: []string{"member"}},
	})

	for _, token := range []string{"s3cret", "guess", ""} {
		identity, err := authenticate(newRequest("/volumes", token))
		fmt.Printf("%q: user %q, error %v\n", token, identity.UserID, err)
	}
	// Output:
	// "s3cret": user "ada", error <nil>
	// "guess": user "", error The request you have made requires authentication.
	// "": user "", error The request you have made requires authentication.
}

// serveKeystone replies as Keystone does: it accepts each login, and knows the user's token "ada-token".
func serveKeystone(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method == http.MethodPost: // a login
		w.Header().Set("X-Subject-Token", "service-token")
		w.WriteHeader(http.StatusCreated)
	case r.Header.Get("X-Subject-Token") == "ada-token":
		_, _ = io.WriteString(w, `{"token": {"expires_at": "2100-01-01T00:00:00.000000Z",
			"user": {"id": "ada"}, "project": {"id": "p1"}, "roles": [{"name": "member"}]}}`)
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

// Keystone validates the tokens of an API service. The handler finds the identity in its context. A client
// with an unknown token gets status 401, and Keystone's URL in the header WWW-Authenticate.
func ExampleKeystone() {
	keystone := httptest.NewServer(http.HandlerFunc(serveKeystone))
	defer keystone.Close()
	k, err := auth.NewKeystone(auth.KeystoneConfig{
		URL:         keystone.URL,
		Username:    "volume",
		Password:    "pw",
		ProjectName: "service",
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer k.Stop(context.Background())

	mux := api.New(api.Config{Authenticate: k.Authenticate, Challenge: k.Challenge()})
	api.Handle(mux, "GET /whoami", func(ctx context.Context, _ *api.Request[api.None]) (string, error) {
		return reqctx.From(ctx).UserID, nil
	})

	for _, token := range []string{"ada-token", "guess"} {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, newRequest("/whoami", token))
		fmt.Println(w.Code, w.Header().Get("WWW-Authenticate") != "")
	}
	// Output:
	// 200 false
	// 401 true
}

// Check tells a service's readiness: it fails while Keystone is down.
func ExampleKeystone_Check() {
	keystone := httptest.NewServer(http.HandlerFunc(serveKeystone))
	k, err := auth.NewKeystone(auth.KeystoneConfig{URL: keystone.URL, Username: "volume", Password: "pw", ProjectName: "service"})
	if err != nil {
		fmt.Println(err)
		return
	}
	keystone.Close()

	err = k.Check(context.Background())
	fmt.Println(fault.CodeOf(err))
	// Output: Unavailable
}

// NewKeystone refuses a configuration that cannot work, before the service starts.
func ExampleNewKeystone() {
	_, err := auth.NewKeystone(auth.KeystoneConfig{URL: "keystone:5000", Username: "volume", Password: "pw", ProjectName: "service"})
	fmt.Println(err)
	// Output: Keystone's URL "keystone:5000" does not have the form https://host:5000/v3
}
