package api

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // the fingerprint of a certificate in Nova
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"math"
	"math/big"
	"net/http"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"software.sslmate.com/src/go-pkcs12"

	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/listing"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service/api"
)

// The names of the rules, as in Nova.
const (
	ruleKeyPairs      = "os_compute_api:os-keypairs:index"
	ruleKeyPairShow   = "os_compute_api:os-keypairs:show"
	ruleKeyPairCreate = "os_compute_api:os-keypairs:create"
	ruleKeyPairDelete = "os_compute_api:os-keypairs:delete"
)

var keyPairRules = []rule{
	{ruleKeyPairs, "rule:context_is_admin or user_id:%(user_id)s", "List the key pairs of a user", "GET", "/os-keypairs"},
	{ruleKeyPairShow, "rule:context_is_admin or user_id:%(user_id)s", "Show a key pair", "GET", "/os-keypairs/{keypair_name}"},
	{ruleKeyPairCreate, "rule:context_is_admin or user_id:%(user_id)s", "Create or import a key pair", "POST", "/os-keypairs"},
	{ruleKeyPairDelete, "rule:context_is_admin or user_id:%(user_id)s", "Delete a key pair", "DELETE", "/os-keypairs/{keypair_name}"},
}

// keyPairs has the parameters of lists of key pairs since 2.35. Before 2.35 a list has no pages. keyPairUser is the query of the other routes since 2.10.
var (
	keyPairs    = listing.Spec{MaxLimit: MaxLimit, Lenient: true, StrictSince: strictSince, Default: listing.SortKey{Column: "name"}, Filters: []listing.Filter{{Name: "user_id"}}}
	keyPairUser = []api.Schema{
		{Max: "2.74", JSON: `{"type": "object", "properties": {"user_id": {"type": "array", "items": {"type": "string"}}}}`},
		{Min: strictSince, JSON: `{"type": "object", "properties": {"user_id": {"type": "array", "items": {"type": "string"}}}, "additionalProperties": false}`},
	}
)

// keyPairRoutes registers the routes of key pairs. A key pair belongs to a user, so the rules have the user as their target. Since 2.10 a
// request may name the user in user_id. Default: the client.
func (s *server) keyPairRoutes(all, withBody *api.Group) {
	read := api.NewGroup(all, api.Route{Pattern: "/os-keypairs"})
	one := api.NewGroup(read, api.Route{Pattern: "/{name}", Errors: []int{notFound}})
	write := api.NewGroup(withBody, api.Route{Pattern: "/os-keypairs", Errors: []int{conflict}})
	api.HandleRoute(read, api.Route{Pattern: "GET", Min: "2.35", Summary: "List key pairs", List: &keyPairs}, s.listKeyPairs)
	for _, v := range []struct {
		min, max string
		query    []api.Schema
		user     func(*http.Request) string
	}{
		{"", "2.9", nil, func(*http.Request) string { return "" }},
		{"2.10", "", keyPairUser, func(r *http.Request) string { return r.URL.Query().Get("user_id") }},
	} {
		s := keyPairsOf{s, v.user}
		list := api.Route{Pattern: "GET", Min: v.min, Max: cmp.Or(v.max, "2.34"), Summary: "List key pairs"}
		if v.query != nil {
			list.Query = v.query[:1]
		}
		api.HandleRoute(read, list, s.list)
		api.HandleRoute(one, api.Route{Pattern: "GET", Min: v.min, Max: v.max, Summary: "Show a key pair", Query: v.query}, s.show)
		api.HandleRoute(one, api.Route{Pattern: "DELETE", Min: cmp.Or(v.min, "2.2"), Max: v.max, Summary: "Delete a key pair", Query: v.query}, s.delete)
	}
	first := keyPairsOf{s, func(*http.Request) string { return "" }}
	api.HandleRoute(one, api.Route{Pattern: "DELETE", Max: "2.1", Summary: "Delete a key pair", Status: http.StatusAccepted}, first.delete)
	create := api.Route{Pattern: "POST", Max: "2.1", Summary: "Create or import a key pair", Status: http.StatusOK}
	api.HandleRoute(write, create, s.createKeyPair)
	create.Min, create.Max, create.Status = "2.2", "", http.StatusCreated
	api.HandleRoute(write, create, s.createKeyPair)
}

// keyPairsOf handles requests for the key pairs of the user that the function user returns. If the function returns "", the user is the client.
type keyPairsOf struct {
	*server

	user func(*http.Request) string
}

type keyPairList struct {
	KeyPairs []oneKeyPair `json:"keypairs"`
	Links    []api.Link   `json:"keypairs_links,omitempty" since:"2.35"`
}

type oneKeyPair struct {
	KeyPair keyPairBrief `json:"keypair"`
}

type keyPairBrief struct {
	Name        string `json:"name"`
	Type        string `json:"type" enum:"ssh,x509" since:"2.2"`
	PublicKey   string `json:"public_key"`
	Fingerprint string `json:"fingerprint"`
}

type shownKeyPair struct {
	KeyPair keyPairView `json:"keypair"`
}

// keyPairView has all attributes of a key pair. As in Nova, the attributes deleted, deleted_at and updated_at never change.
type keyPairView struct {
	keyPairBrief

	ID        int64      `json:"id"`
	UserID    string     `json:"user_id"`
	Deleted   bool       `json:"deleted"`
	CreatedAt *micros    `json:"created_at"`
	DeletedAt alwaysNull `json:"deleted_at"`
	UpdatedAt alwaysNull `json:"updated_at"`
}

func briefKeyPair(k *store.KeyPair) keyPairBrief {
	return keyPairBrief{Name: k.Name, Type: k.Type, PublicKey: k.PublicKey, Fingerprint: k.Fingerprint}
}

// keyPairOwner returns the owner of the key pairs of a request: the named user, or the client if named is empty. Errors: Denied if the rule does not allow the
// client to use the key pairs of this user.
func (s *server) keyPairOwner(ctx context.Context, named, rule string) (string, error) {
	user := cmp.Or(named, reqctx.From(ctx).UserID)
	return user, s.mux.Enforce(ctx, rule, map[string]any{"user_id": user})
}

// list lists all key pairs of a user on one page.
func (s keyPairsOf) list(ctx context.Context, r *api.Request[api.None]) (keyPairList, error) {
	return s.keyPairPage(ctx, r, s.user(r.Request), listing.Query{Limit: math.MaxInt32})
}

func (s *server) listKeyPairs(ctx context.Context, r *api.Request[api.None]) (keyPairList, error) {
	r.List.Take("user_id")
	return s.keyPairPage(ctx, r, r.URL.Query().Get("user_id"), r.List) // of several users the first one counts, as in Nova
}

func (s *server) keyPairPage(ctx context.Context, r *api.Request[api.None], user string, q listing.Query) (keyPairList, error) {
	out := keyPairList{KeyPairs: []oneKeyPair{}}
	user, err := s.keyPairOwner(ctx, user, ruleKeyPairs)
	if err != nil {
		return out, err
	}
	list, err := s.cfg.Store.KeyPairs(ctx, user, q)
	for i := range list {
		out.KeyPairs = append(out.KeyPairs, oneKeyPair{briefKeyPair(&list[i])})
	}
	if n := len(list); n > 0 {
		out.Links = r.NextPage(n, list[n-1].Name)
	}
	return out, err
}

func (s keyPairsOf) show(ctx context.Context, r *api.Request[api.None]) (out shownKeyPair, err error) {
	user, err := s.keyPairOwner(ctx, s.user(r.Request), ruleKeyPairShow)
	if err != nil {
		return out, err
	}
	k, err := s.cfg.Store.KeyPair(ctx, user, r.PathValue("name"))
	if err != nil {
		return out, err
	}
	return shownKeyPair{keyPairView{keyPairBrief: briefKeyPair(k), ID: k.ID, UserID: k.UserID, CreatedAt: formatMicros(&k.CreatedAt)}}, nil
}

func (s keyPairsOf) delete(ctx context.Context, r *api.Request[api.None]) (api.None, error) {
	user, err := s.keyPairOwner(ctx, s.user(r.Request), ruleKeyPairDelete)
	if err != nil {
		return api.None{}, err
	}
	return api.None{}, s.cfg.Store.DeleteKeyPair(ctx, user, r.PathValue("name"))
}

type createKeyPair struct {
	KeyPair newKeyPair `json:"keypair"`
}

// newKeyPair is a request to import a public key. Before 2.92 the public key may be missing; then nova-mini generates a key pair.
type newKeyPair struct {
	Name      keyPairName    `json:"name" until:"2.91"`
	MailName  keyPairNewName `json:"mail_name" name:"name" since:"2.92"`
	Type      string         `json:"type,omitempty" enum:"ssh,x509" since:"2.2"`
	PublicKey givenText      `json:"public_key,omitzero" until:"2.91"`
	Imported  string         `json:"imported" name:"public_key" since:"2.92"`
	UserID    string         `json:"user_id,omitempty" since:"2.10"`
}

// keyPairName is the name of a new key pair until 2.91. keyPairNewName is the name since 2.92, which may also have dots and @.
type (
	keyPairName    string
	keyPairNewName string
)

// JSONSchema implements api.JSONSchemer.
func (keyPairName) JSONSchema() string {
	return `{"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[_\\-a-zA-Z0-9]([_\\- a-zA-Z0-9]*[_\\-a-zA-Z0-9])?$"}`
}

// JSONSchema implements api.JSONSchemer.
func (keyPairNewName) JSONSchema() string {
	return `{"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[_\\-@.a-zA-Z0-9]([_\\-@. a-zA-Z0-9]*[_\\-@.a-zA-Z0-9])?$"}`
}

type createdKeyPair struct {
	KeyPair madeKeyPair `json:"keypair"`
}

type madeKeyPair struct {
	keyPairBrief

	UserID     string `json:"user_id"`
	PrivateKey string `json:"private_key,omitempty" until:"2.91"`
}

func (s *server) createKeyPair(ctx context.Context, r *api.Request[createKeyPair]) (out createdKeyPair, err error) {
	in := r.Body.KeyPair
	user, err := s.keyPairOwner(ctx, in.UserID, ruleKeyPairCreate)
	if err != nil {
		return out, err
	}
	k := &store.KeyPair{UserID: user, Name: cmp.Or(string(in.Name), string(in.MailName)), Type: cmp.Or(in.Type, "ssh"), PublicKey: in.Imported}
	if err := s.cfg.Store.CheckKeyPair(ctx, user, k.Name); err != nil { // first, as in Nova
		return out, err
	}
	private := ""
	switch {
	case in.PublicKey.RawMessage != nil:
		k.PublicKey = plainText(in.PublicKey.RawMessage)
	case in.Imported == "" && in.MailName == "":
		if k.PublicKey, private, err = generateKey(k.Type, user); err != nil {
			return out, err
		}
	}
	if k.Fingerprint, err = keyFingerprint(k.Type, k.PublicKey); err != nil {
		return out, err
	}
	out.KeyPair = madeKeyPair{keyPairBrief: briefKeyPair(k), UserID: user, PrivateKey: private}
	return out, s.cfg.Store.CreateKeyPair(ctx, k)
}

// maxPublicKey is the maximum length of a public key, in bytes.
const maxPublicKey = 16384

// keyFingerprint returns the fingerprint of a public key, in Nova's form. Errors: Invalid, with Nova's texts.
func keyFingerprint(kind, public string) (string, error) {
	if len(public) > maxPublicKey {
		return "", fault.New(fault.Invalid, "Keypair data is invalid: the public key has %d bytes, more than %d", len(public), maxPublicKey)
	}
	if kind == "x509" {
		block, _ := pem.Decode([]byte(public))
		if block == nil {
			return "", fault.New(fault.Invalid, "Keypair data is invalid: failed to generate X509 fingerprint. Error message: the key is not in PEM")
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return "", fault.New(fault.Invalid, "Keypair data is invalid: failed to generate X509 fingerprint. Error message: %w", err)
		}
		sum := sha1.Sum(cert.Raw) //nolint:gosec // see the import
		return addColons(hex.EncodeToString(sum[:])), nil
	}
	key, _, _, rest, err := ssh.ParseAuthorizedKey([]byte(public))
	if err != nil || len(rest) > 0 {
		return "", fault.New(fault.Invalid, "Keypair data is invalid: failed to generate fingerprint")
	}
	return ssh.FingerprintLegacyMD5(key), nil
}

// addColons puts a colon after every second digit, except at the end.
func addColons(digits string) string {
	var out strings.Builder
	for i := 0; i < len(digits); i += 2 {
		if i > 0 {
			out.WriteByte(':')
		}
		out.WriteString(digits[i : i+2])
	}
	return out.String()
}

// keyBits is the size of generated keys, as in Nova.
const keyBits = 2048

// generateKey generates a key pair. For the kind ssh, public is a line in OpenSSH's format, and private is PEM. For the kind x509, public is a
// certificate in PEM, and private is PKCS #12 without a password, in base64, as in Nova for Windows guests.
func generateKey(kind, user string) (public, private string, err error) {
	key, err := rsa.GenerateKey(rand.Reader, keyBits)
	if err != nil {
		return "", "", err
	}
	if kind == "x509" {
		return generateCertificate(key, user)
	}
	pub, err := ssh.NewPublicKey(&key.PublicKey)
	if err != nil {
		return "", "", err
	}
	private = string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}))
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(pub))) + " Generated-by-Nova", private, nil
}

// principalName is the object identifier of the otherName by which Windows finds the user of a certificate.
var principalName = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 20, 2, 3}

// otherName is an otherName of a subjectAltName (RFC 5280, 4.2.1.6).
type otherName struct {
	ID    asn1.ObjectIdentifier
	Value asn1.RawValue `asn1:"tag:0,explicit"`
}

func generateCertificate(key *rsa.PrivateKey, user string) (public, private string, err error) {
	name, err := asn1.MarshalWithParams(user+"@localhost", "utf8")
	if err != nil {
		return "", "", err
	}
	alt, err := asn1.MarshalWithParams(otherName{principalName, asn1.RawValue{FullBytes: name}}, "tag:0")
	if err != nil {
		return "", "", err
	}
	alts, err := asn1.Marshal([]asn1.RawValue{{FullBytes: alt}})
	if err != nil {
		return "", "", err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: user}, NotBefore: now, NotAfter: now.AddDate(10, 0, 0),
		ExtKeyUsage:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: alts}},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return "", "", err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return "", "", err
	}
	p12, err := pkcs12.Modern.Encode(key, cert, nil, "")
	if err != nil {
		return "", "", err
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), base64.StdEncoding.EncodeToString(p12), nil
}
