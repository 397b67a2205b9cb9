package db

import (
	"database/sql/driver"
	"encoding/json"
	"fmt"
	"reflect"
)

// JSON is a column of text that holds a T as JSON, as a field of a row or as an argument of a statement.
// A nil map is stored as {}, a nil slice as [], and a nil pointer as NULL. NULL is read as the zero T. A statement
// fails if V cannot be encoded. Reading a row fails if its text is not the JSON of a T.
//
//	type volume struct {
//		ID   string                     `db:"id"`
//		Tags db.JSON[map[string]string] `db:"tags"`
//	}
type JSON[T any] struct {
	V T
}

// JSONOf returns v as an argument of a statement.
func JSONOf[T any](v T) JSON[T] { return JSON[T]{v} }

// Value implements driver.Valuer.
func (j JSON[T]) Value() (driver.Value, error) {
	switch v := reflect.ValueOf(&j.V).Elem(); {
	case v.Kind() == reflect.Map && v.IsNil():
		return "{}", nil
	case v.Kind() == reflect.Slice && v.IsNil():
		return "[]", nil
	case v.Kind() == reflect.Pointer && v.IsNil():
		return nil, nil //nolint:nilnil // NULL
	}
	text, err := json.Marshal(j.V)
	if err != nil {
		return nil, fmt.Errorf("encode %T as JSON: %w", j.V, err)
	}
	return string(text), nil
}

// Scan implements sql.Scanner. After an error V is unchanged.
func (j *JSON[T]) Scan(src any) error {
	var text []byte
	switch src := src.(type) {
	case nil:
		*j = JSON[T]{}
		return nil
	case string:
		text = []byte(src)
	case []byte:
		text = src
	default:
		return fmt.Errorf("read %T from JSON: the column has the type %T, want text", j.V, src)
	}
	var v T
	if err := json.Unmarshal(text, &v); err != nil {
		return fmt.Errorf("read %T from JSON: %w", j.V, err)
	}
	j.V = v
	return nil
}
