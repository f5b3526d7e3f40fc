curl $BASE/key/info \
  -H "Authorization: Bearer $API_KEY"
